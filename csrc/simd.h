// Portable vectors for the per-ISA kernel files: GCC/Clang vector extensions, `kLanes` floats wide.
//
// Each kernels_<isa>.cpp defines HR_ISA (namespace) and HR_LANES and then includes this and the *_impl.h files, so that one
// source gives generic, AVX2 and AVX512 code. Everything here is internal to that translation unit: nothing from the
// standard library that could be merged by the linker with a copy compiled for another ISA.
//
// Determinism: element operations only, in source order; a row's result never depends on how rows are blocked.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace headrace {
namespace HR_ISA {

constexpr int kLanes = HR_LANES;

typedef float vf __attribute__((vector_size(4 * HR_LANES), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * HR_LANES), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * HR_LANES), may_alias));
typedef uint16_t vh __attribute__((vector_size(2 * HR_LANES), may_alias));
typedef float vf_any __attribute__((vector_size(4 * HR_LANES), may_alias, aligned(4)));
typedef uint32_t vu_any __attribute__((vector_size(4 * HR_LANES), may_alias, aligned(2)));
typedef uint16_t vh_any __attribute__((vector_size(2 * HR_LANES), may_alias, aligned(2)));
typedef int16_t vs_any __attribute__((vector_size(2 * HR_LANES), may_alias, aligned(2)));
typedef int16_t vs2 __attribute__((vector_size(4 * HR_LANES), may_alias));
typedef int8_t vb_any __attribute__((vector_size(HR_LANES), may_alias, aligned(1)));
typedef int8_t vb2_any __attribute__((vector_size(2 * HR_LANES), may_alias, aligned(1)));

#define HR_INLINE static inline __attribute__((always_inline))

HR_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_any*>(p); }
HR_INLINE void store(float* p, vf v) { *reinterpret_cast<vf_any*>(p) = v; }
HR_INLINE vu load_pairs(const uint16_t* p) { return *reinterpret_cast<const vu_any*>(p); }
HR_INLINE vf splat(float x) { return x - vf{}; }
HR_INLINE vi splat_i(int32_t x) { return x - vi{}; }
HR_INLINE vf select(vi mask, vf a, vf b) { return mask ? a : b; }
HR_INLINE vf vmax(vf a, vf b) {  // b where unordered
#if HR_LANES == 16 && defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#else
  return a > b ? a : b;
#endif
}

HR_INLINE vi iota() {
  vi v;
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// Halving tree: one fixed order for every caller.
HR_INLINE float hsum(vf v) {
  for (int w = kLanes / 2; w > 0; w /= 2) v = v + __builtin_shuffle(v, iota() ^ w);
  return v[0];
}

HR_INLINE float hmax(vf v) {
  for (int w = kLanes / 2; w > 0; w /= 2) v = vmax(v, __builtin_shuffle(v, iota() ^ w));
  return v[0];
}

// Largest |x|; NaN if one of them is not finite.
HR_INLINE float largest_or_nan(const float* x, int64_t n) {
  vf top = {}, bad = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const vf v = load(x + i);
    top = vmax(v < 0.0f ? -v : v, top);
    bad = bad + (v - v);
  }
  float largest = hmax(top), spoiled = hsum(bad);
  for (; i < n; ++i) {
    const float v = __builtin_fabsf(x[i]);
    largest = v > largest ? v : largest;
    spoiled += v - v;
  }
  return largest + spoiled;
}

// The steps of a Walsh-Hadamard transform inside a register: lane i gets x[i ^ h] + x[i], or x[i ^ h] - x[i] where i has bit h.
HR_INLINE vf hadamard_step(vf x, int32_t h) {
  const vf other = __builtin_shuffle(x, iota() ^ h);
  return select((iota() & h) != 0, other - x, x + other);
}

// Walsh-Hadamard transform of each `block` of x[n], a power of two, unscaled; n is a multiple of 16. Adds only, one order.
HR_INLINE void hadamard(float* x, int64_t n, int64_t block) {
  for (int64_t i = 0; i < n; i += kLanes) {
    vf v = load(x + i);
    if (block > 1) v = hadamard_step(v, 1);
    if (block > 2) v = hadamard_step(v, 2);
    if (kLanes > 4 && block > 4) v = hadamard_step(v, 4);
    if (kLanes > 8 && block > 8) v = hadamard_step(v, 8);
    store(x + i, v);
  }
  for (int64_t h = kLanes; h < block; h *= 2) {
    for (int64_t i = 0; i < n; i += 2 * h)
      for (int64_t j = i; j < i + h; j += kLanes) {
        const vf a = load(x + j), b = load(x + j + h);
        store(x + j, a + b);
        store(x + j + h, a - b);
      }
  }
}

// The bf16 in the low / high half of each 32-bit lane, as fp32.
HR_INLINE vf low_half(vu pairs) { return reinterpret_cast<vf>(pairs << 16); }
HR_INLINE vf high_half(vu pairs) { return reinterpret_cast<vf>(pairs & 0xFFFF0000u); }

// fp32 to bf16, nearest even; NaN stays NaN. The 16 bits end in the low half of each lane.
HR_INLINE vu bf16_bits(vf x) {
  vu u = reinterpret_cast<vu>(x);
  vu rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  vu nan = (u >> 16) | 0x40u;
  vi is_nan = x != x;
  return (reinterpret_cast<vu>(is_nan) & nan) | (~reinterpret_cast<vu>(is_nan) & rounded);
}
HR_INLINE void store_bf16(uint16_t* p, vf x) {
#if HR_LANES == 16 && defined(__AVX512BF16__)
  __m256bh b = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(x));
  memcpy(p, &b, 32);
#else
  *reinterpret_cast<vh_any*>(p) = __builtin_convertvector(bf16_bits(x), vh);
#endif
}
HR_INLINE uint16_t to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  if (x != x) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

// `x`, never fused with what consumes it: the same bits wherever the compiler would contract a product into a sum.
HR_INLINE vf rounded(vf x) {
#if defined(__x86_64__) && HR_LANES == 16
  __asm__("" : "+v"(x));
#elif defined(__x86_64__)
  __asm__("" : "+x"(x));
#elif defined(__aarch64__)
  __asm__("" : "+w"(x));
#else
  __asm__("" : "+m"(x));
#endif
  return x;
}

// Nearest integer, ties to even, of |x| < 2^22.
HR_INLINE vi nearest(vf x) {
#if HR_LANES == 16 && defined(__AVX512F__)
  return reinterpret_cast<vi>(_mm512_cvtps_epi32(reinterpret_cast<__m512>(x)));
#elif HR_LANES == 8 && defined(__AVX2__)
  return reinterpret_cast<vi>(_mm256_cvtps_epi32(reinterpret_cast<__m256>(x)));
#elif HR_LANES == 4 && defined(__SSE2__)
  return reinterpret_cast<vi>(_mm_cvtps_epi32(reinterpret_cast<__m128>(x)));
#else
  return reinterpret_cast<vi>(rounded(x) + splat(12582912.0f)) - 0x4B400000;  // 1.5 * 2^23: adding it rounds
#endif
}
// Narrowing and widening. For AVX-512 by hand: the compiler halves the vectors first.
#if HR_LANES == 16 && defined(__AVX512BW__)
HR_INLINE void store_s16(uint16_t* p, vi x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(x)));
}
HR_INLINE void store_s8(int8_t* p, vi x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(x)));
}
HR_INLINE vf load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return reinterpret_cast<vf>(_mm512_slli_epi32(wide, 16));
}
// 2 * kLanes signed bytes, each to 16 bits.
HR_INLINE vu widen_pairs(const char* p) {
  return reinterpret_cast<vu>(_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
#else
HR_INLINE void store_s16(uint16_t* p, vi x) { *reinterpret_cast<vs_any*>(p) = __builtin_convertvector(x, vs_any); }
HR_INLINE void store_s8(int8_t* p, vi x) { *reinterpret_cast<vb_any*>(p) = __builtin_convertvector(x, vb_any); }
HR_INLINE vf load_bf16(const uint16_t* p) {
  return reinterpret_cast<vf>(__builtin_convertvector(*reinterpret_cast<const vh_any*>(p), vu) << 16);
}
HR_INLINE vu widen_pairs(const char* p) {
  return reinterpret_cast<vu>(__builtin_convertvector(*reinterpret_cast<const vb2_any*>(p), vs2));
}
#endif

// acc + a.lo * b.lo + a.hi * b.hi in every lane, all signed 16 bits.
HR_INLINE vi add_products16(vi acc, uint32_t a, vu b) {
  const int both = static_cast<int>(a);
#if HR_LANES == 16 && defined(__AVX512VNNI__)
  return reinterpret_cast<vi>(
      _mm512_dpwssd_epi32(reinterpret_cast<__m512i>(acc), _mm512_set1_epi32(both), reinterpret_cast<__m512i>(b)));
#elif HR_LANES == 8 && defined(__AVX2__)
  return acc + reinterpret_cast<vi>(_mm256_madd_epi16(_mm256_set1_epi32(both), reinterpret_cast<__m256i>(b)));
#elif HR_LANES == 4 && defined(__SSE2__)
  return acc + reinterpret_cast<vi>(_mm_madd_epi16(_mm_set1_epi32(both), reinterpret_cast<__m128i>(b)));
#else
  const vi pairs = reinterpret_cast<vi>(b);
  return acc + ((pairs << 16) >> 16) * static_cast<int16_t>(a & 0xFFFFu) + (pairs >> 16) * static_cast<int16_t>(a >> 16);
#endif
}

// 2^x for x <= ~126, relative error below 2e-7; exactly 1 at 0, exactly 0 far below (so at -inf); NaN stays.
// Polynomial: Taylor of 2^f on |f| <= 1/2, degree 6.
HR_INLINE vf exp2_fraction(vf f) {
  vf p = splat(1.5403530e-04f);
  p = p * f + 1.3333558e-03f;
  p = p * f + 9.6181291e-03f;
  p = p * f + 5.5504109e-02f;
  p = p * f + 2.4022651e-01f;
  p = p * f + 6.9314718e-01f;
  return p * f + 1.0f;
}
#if HR_LANES == 16 && defined(__AVX512F__)
HR_INLINE vf exp2v(vf x) {
  const __m512 v = _mm512_max_ps(_mm512_set1_ps(-200.0f), reinterpret_cast<__m512>(x));  // the second if x is NaN
  const __m512 n = _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const vf p = exp2_fraction(reinterpret_cast<vf>(_mm512_sub_ps(v, n)));
  return reinterpret_cast<vf>(_mm512_scalef_ps(reinterpret_cast<__m512>(p), n));
}
#else
HR_INLINE vf exp2v(vf x) {
  vf clamped = x < -126.0f ? splat(-126.0f) : x;
  clamped = clamped > 126.0f ? splat(126.0f) : clamped;
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  vf shifted = clamped + magic;
  vi n = reinterpret_cast<vi>(shifted) - 0x4B400000;
  vf r = exp2_fraction(clamped - (shifted - magic)) * reinterpret_cast<vf>((n + 127) << 23);
  r = x < -126.0f ? vf{} : r;
  return x != x ? x : r;
}
#endif
// 2^x of x <= 0 (or a rounding above) for weights that keep 16 bits at most, relative error below 4e-6; 0 at -inf; NaN stays.
HR_INLINE vf exp2_short(vf x) {
#if HR_LANES == 16 && defined(__AVX512DQ__)
  const __m512 v = reinterpret_cast<__m512>(x);
  const vf f = reinterpret_cast<vf>(_mm512_reduce_ps(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));  // x - floor(x); 0 at -inf
  vf p = splat(0.01342670f) * f + 0.05224244f;  // least largest error of all with p(0) = 1
  p = p * f + 0.24128022f;
  p = p * f + 0.69304484f;
  p = p * f + 1.0f;
  return reinterpret_cast<vf>(_mm512_scalef_ps(reinterpret_cast<__m512>(p), v));  // times 2^floor(x)
#else
  return exp2v(x);
#endif
}
constexpr float kLog2e = 1.44269504f;
HR_INLINE vf expv(vf x) { return exp2v(x * kLog2e); }

// tanh by exp, accurate to 1e-6 relative; an odd polynomial near 0, where 1 - e^-2x cancels.
HR_INLINE vf tanhv(vf x) {
  vf a = x < 0.0f ? -x : x;
  vf e = exp2v(a * (-2.0f * kLog2e));
  vf big = (1.0f - e) / (1.0f + e);
  vf s = x * x;
  vf small = a * (1.0f + s * (-0.33333333f + s * (0.13333333f + s * (-0.05396825f + s * 0.02186949f))));
  vf t = a < 0.25f ? small : big;
  return x < 0.0f ? -t : t;
}

}  // namespace HR_ISA
}  // namespace headrace
