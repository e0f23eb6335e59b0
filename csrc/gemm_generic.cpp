// Linear layers in plain C++, for any CPU. The only path where fma means a rounded product and a rounded sum.
#include <math.h>

#include "gemm_impl.h"
#include "half.h"

namespace headrace {
namespace {

struct F16 {
  float v[16];
};
struct I16 {
  int32_t v[16];
};
struct W64 {
  uint8_t v[64];
};

#define HR_LANES(expression)              \
  {                                       \
    F16 out;                              \
    for (int i = 0; i < 16; ++i) out.v[i] = (expression); \
    return out;                           \
  }
#define HR_INT_LANES(expression)          \
  {                                       \
    I16 out;                              \
    for (int i = 0; i < 16; ++i) out.v[i] = (expression); \
    return out;                           \
  }

struct Generic {
  using F = F16;
  using I = I16;
  using W = W64;
  static constexpr int kRowsFloat = 1, kRowsInt = 1, kRowsGroup8 = 1, kRowsGroup4 = 1, kRowsTwoStreams = 0;

  static HR_INLINE F zero() HR_LANES(0.0f);
  static HR_INLINE F set(float x) HR_LANES(x);
  static HR_INLINE F load(const float* p) HR_LANES(p[i]);
  static HR_INLINE F load_some(const float* p, int64_t count) HR_LANES(i < count ? p[i] : 0.0f);
  static HR_INLINE F load_half(const uint8_t* p) HR_LANES(half_to_float(static_cast<uint16_t>(p[2 * i] | p[2 * i + 1] << 8)));
  static HR_INLINE void store(float* p, const F& x) { __builtin_memcpy(p, x.v, 64); }
  static HR_INLINE void store_some(float* p, const F& x, int64_t count) {
    for (int i = 0; i < 16 && i < count; ++i) p[i] = x.v[i];
  }

  static HR_INLINE F add(const F& x, const F& y) HR_LANES(x.v[i] + y.v[i]);
  static HR_INLINE F sub(const F& x, const F& y) HR_LANES(x.v[i] - y.v[i]);
  static HR_INLINE F mul(const F& x, const F& y) HR_LANES(x.v[i] * y.v[i]);
  static HR_INLINE F div(const F& x, const F& y) HR_LANES(x.v[i] / y.v[i]);
  static HR_INLINE F fma(const F& x, const F& y, const F& z) HR_LANES(x.v[i] * y.v[i] + z.v[i]);
  static HR_INLINE F min(const F& x, const F& y) HR_LANES(x.v[i] < y.v[i] ? x.v[i] : y.v[i]);
  static HR_INLINE F max(const F& x, const F& y) HR_LANES(x.v[i] > y.v[i] ? x.v[i] : y.v[i]);
  static HR_INLINE F abs(const F& x) HR_LANES(fabsf(x.v[i]));
  static HR_INLINE F copy_sign(const F& size, const F& sign) HR_LANES(copysignf(size.v[i], sign.v[i]));

  static HR_INLINE I zero_int() HR_INT_LANES(0);
  static HR_INLINE I load_ints(const uint8_t* p) {
    I x;
    __builtin_memcpy(x.v, p, 64);
    return x;
  }
  static HR_INLINE I set_int(int32_t x) HR_INT_LANES(x);
  static HR_INLINE I add_int(const I& x, const I& y) HR_INT_LANES(x.v[i] + y.v[i]);
  static HR_INLINE I max_int(const I& x, const I& y) HR_INT_LANES(x.v[i] > y.v[i] ? x.v[i] : y.v[i]);
  static HR_INLINE I abs_bits(const F& x) HR_INT_LANES(static_cast<int32_t>(float_bits(x.v[i]) & 0x7FFFFFFFu));
  static HR_INLINE int32_t reduce_max(const I& x) {
    int32_t top = x.v[0];
    for (int32_t lane : x.v) top = lane > top ? lane : top;
    return top;
  }
  static HR_INLINE int32_t reduce_add(const I& x) {
    int32_t total = 0;
    for (int32_t lane : x.v) total += lane;
    return total;
  }
  static HR_INLINE F from_int(const I& x) HR_LANES(static_cast<float>(x.v[i]));
  // Adding 1.5 * 2^23 rounds to the nearest even integer; |x| < 2^22 here.
  static HR_INLINE I round_int(const F& x)
      HR_INT_LANES(static_cast<int32_t>(float_bits(x.v[i] + 12582912.0f) - 0x4B400000u));
  static HR_INLINE F power_of_two(const I& n) HR_LANES(bits_float(static_cast<uint32_t>(n.v[i] + 127) << 23));
  static HR_INLINE void store_bytes(int8_t* p, const I& x) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(x.v[i]);
  }
  static HR_INLINE void store_bf16(uint8_t* p, const F& x) {
    for (int i = 0; i < 16; ++i) {
      const uint16_t h = float_to_bf16(x.v[i]);
      __builtin_memcpy(p + 2 * i, &h, 2);
    }
  }

  static HR_INLINE W load_row(const uint8_t* p) {
    W w;
    __builtin_memcpy(w.v, p, 64);
    return w;
  }
  static HR_INLINE W load_row_u8(const uint8_t* p) { return load_row(p); }
  static HR_INLINE W low_nibbles(W w) {
    for (uint8_t& x : w.v) x &= 15;
    return w;
  }
  static HR_INLINE W high_nibbles(W w) {
    for (uint8_t& x : w.v) x >>= 4;
    return w;
  }
  template <bool Asym>
  static HR_INLINE I start_u8(int32_t offset) {
    return set_int(Asym ? 0 : offset);
  }
  static HR_INLINE I dot_u8(I acc, const W& w, int32_t a) {
    int8_t q[4];
    __builtin_memcpy(q, &a, 4);
    for (int i = 0; i < 16; ++i) {
      acc.v[i] += w.v[4 * i] * q[0] + w.v[4 * i + 1] * q[1] + w.v[4 * i + 2] * q[2] + w.v[4 * i + 3] * q[3];
    }
    return acc;
  }
  static HR_INLINE I dot_u4(const I& acc, const W& w, int32_t a) { return dot_u8(acc, w, a); }
  static HR_INLINE F dot_bf16(F acc, const W& w, uint32_t a) {
    const float even = bits_float(a << 16), odd = bits_float(a & 0xFFFF0000u);
    uint32_t pairs[16];
    __builtin_memcpy(pairs, w.v, 64);
    for (int i = 0; i < 16; ++i) {
      acc.v[i] = acc.v[i] + bits_float(pairs[i] << 16) * even;
      acc.v[i] = acc.v[i] + bits_float(pairs[i] & 0xFFFF0000u) * odd;
    }
    return acc;
  }
};

}  // namespace

extern const GemmKernels kGemmGeneric = kernels_for<Generic>();

}  // namespace headrace
