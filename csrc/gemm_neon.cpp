// Linear layers on ARMv8.2 with the dot-product extension. sdot is signed x signed: stored u8 weights have their top bit
// flipped when loaded, which is w - 128, so their sums start 128 * sum(activations) higher than on the other ISAs.
#include <arm_neon.h>

#include "gemm_impl.h"

namespace headrace {
namespace {

// Sixteen columns are four registers. Named members, not an array: GCC keeps arrays of vectors in memory.
template <class V>
struct Quad {
  V a, b, c, d;
};

#define HR_FOUR(expression) \
  { expression(a), expression(b), expression(c), expression(d) }

struct Neon {
  using F = Quad<float32x4_t>;
  using I = Quad<int32x4_t>;
  using W = Quad<int8x16_t>;
  static constexpr int kRowsFloat = 3, kRowsInt = 3, kRowsGroup8 = 2, kRowsGroup4 = 2, kRowsTwoStreams = 1;

  static HR_INLINE F zero() { return set(0.0f); }
  static HR_INLINE F set(float x) {
    const float32x4_t v = vdupq_n_f32(x);
    return {v, v, v, v};
  }
  static HR_INLINE F load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
  static HR_INLINE F load_some(const float* p, int64_t count) {
    if (count >= 16) return load(p);
    float lanes[16] = {};
    for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
    return load(lanes);
  }
  static HR_INLINE float32x4_t widen(const uint8_t* p) {
    float16x4_t h;
    __builtin_memcpy(&h, p, 8);
    return vcvt_f32_f16(h);
  }
  static HR_INLINE F load_half(const uint8_t* p) { return {widen(p), widen(p + 8), widen(p + 16), widen(p + 24)}; }
  static HR_INLINE void store(float* p, F v) {
    vst1q_f32(p, v.a);
    vst1q_f32(p + 4, v.b);
    vst1q_f32(p + 8, v.c);
    vst1q_f32(p + 12, v.d);
  }
  static HR_INLINE void store_some(float* p, F v, int64_t count) {
    if (count >= 16) return store(p, v);
    float lanes[16];
    store(lanes, v);
    for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
  }

#define HR_ADD(q) vaddq_f32(x.q, y.q)
#define HR_SUB(q) vsubq_f32(x.q, y.q)
#define HR_MUL(q) vmulq_f32(x.q, y.q)
#define HR_DIV(q) vdivq_f32(x.q, y.q)
#define HR_FMA(q) vfmaq_f32(z.q, x.q, y.q)
#define HR_MIN(q) vbslq_f32(vcltq_f32(x.q, y.q), x.q, y.q)
#define HR_MAX(q) vbslq_f32(vcgtq_f32(x.q, y.q), x.q, y.q)
#define HR_ABS(q) vabsq_f32(x.q)
#define HR_COPY_SIGN(q) vbslq_f32(vdupq_n_u32(0x80000000u), sign.q, size.q)
  static HR_INLINE F add(F x, F y) { return HR_FOUR(HR_ADD); }
  static HR_INLINE F sub(F x, F y) { return HR_FOUR(HR_SUB); }
  static HR_INLINE F mul(F x, F y) { return HR_FOUR(HR_MUL); }
  static HR_INLINE F div(F x, F y) { return HR_FOUR(HR_DIV); }
  static HR_INLINE F fma(F x, F y, F z) { return HR_FOUR(HR_FMA); }
  static HR_INLINE F min(F x, F y) { return HR_FOUR(HR_MIN); }
  static HR_INLINE F max(F x, F y) { return HR_FOUR(HR_MAX); }  // y where unordered
  static HR_INLINE F abs(F x) { return HR_FOUR(HR_ABS); }
  static HR_INLINE F copy_sign(F size, F sign) { return HR_FOUR(HR_COPY_SIGN); }

#define HR_ADD_INT(q) vaddq_s32(x.q, y.q)
#define HR_MAX_INT(q) vmaxq_s32(x.q, y.q)
#define HR_BITS(q) vreinterpretq_s32_f32(vabsq_f32(x.q))
#define HR_FROM_INT(q) vcvtq_f32_s32(x.q)
#define HR_ROUND(q) vcvtnq_s32_f32(x.q)
#define HR_POWER(q) vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.q, vdupq_n_s32(127)), 23))
  static HR_INLINE I zero_int() { return set_int(0); }
  static HR_INLINE I set_int(int32_t x) {
    const int32x4_t v = vdupq_n_s32(x);
    return {v, v, v, v};
  }
  static HR_INLINE I load_ints(const uint8_t* p) {
    const int32_t* q = reinterpret_cast<const int32_t*>(p);
    return {vld1q_s32(q), vld1q_s32(q + 4), vld1q_s32(q + 8), vld1q_s32(q + 12)};
  }
  static HR_INLINE I add_int(I x, I y) { return HR_FOUR(HR_ADD_INT); }
  static HR_INLINE I max_int(I x, I y) { return HR_FOUR(HR_MAX_INT); }
  static HR_INLINE I abs_bits(F x) { return HR_FOUR(HR_BITS); }
  static HR_INLINE int32_t reduce_max(I x) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.a, x.b), vmaxq_s32(x.c, x.d))); }
  static HR_INLINE int32_t reduce_add(I x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d))); }
  static HR_INLINE F from_int(I x) { return HR_FOUR(HR_FROM_INT); }
  static HR_INLINE I round_int(F x) { return HR_FOUR(HR_ROUND); }
  static HR_INLINE F power_of_two(I n) { return HR_FOUR(HR_POWER); }
  static HR_INLINE void store_bytes(int8_t* p, I v) {
    const int16x8_t low = vcombine_s16(vqmovn_s32(v.a), vqmovn_s32(v.b)), high = vcombine_s16(vqmovn_s32(v.c), vqmovn_s32(v.d));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
  }
  static HR_INLINE uint16x4_t bf16_bits(float32x4_t v) {
    const uint32x4_t u = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7FFF))), 16);
    const uint32x4_t nan = vorrq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(0x40));
    return vmovn_u32(vbslq_u32(vceqq_f32(v, v), rounded, nan));
  }
  static HR_INLINE void store_bf16(uint8_t* p, F v) {
    const uint16x8_t low = vcombine_u16(bf16_bits(v.a), bf16_bits(v.b)), high = vcombine_u16(bf16_bits(v.c), bf16_bits(v.d));
    __builtin_memcpy(p, &low, 16);
    __builtin_memcpy(p + 16, &high, 16);
  }

#define HR_FLIP(q) veorq_s8(w.q, vdupq_n_s8(-128))
#define HR_LOW(q) vandq_s8(w.q, vdupq_n_s8(15))
#define HR_HIGH(q) vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(w.q), 4))
#define HR_DOT(q) vdotq_s32(acc.q, w.q, four)
  static HR_INLINE W load_row(const uint8_t* p) {
    const int8_t* q = reinterpret_cast<const int8_t*>(p);
    return {vld1q_s8(q), vld1q_s8(q + 16), vld1q_s8(q + 32), vld1q_s8(q + 48)};
  }
  static HR_INLINE W load_row_u8(const uint8_t* p) {
    const W w = load_row(p);
    return HR_FOUR(HR_FLIP);
  }
  static HR_INLINE W low_nibbles(W w) { return HR_FOUR(HR_LOW); }
  static HR_INLINE W high_nibbles(W w) { return HR_FOUR(HR_HIGH); }
  // offset is -128 * sum(activations): symmetric sums need no more of it, asymmetric ones get 128 * sum back.
  template <bool Asym>
  static HR_INLINE I start_u8(int32_t offset) {
    return set_int(Asym ? -offset : 0);
  }
  static HR_INLINE I dot_u8(I acc, W w, int32_t a) {
    const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(a));
    return HR_FOUR(HR_DOT);
  }
  static HR_INLINE I dot_u4(I acc, W w, int32_t a) { return dot_u8(acc, w, a); }
  static HR_INLINE float32x4_t pair(float32x4_t acc, int8x16_t w, float32x4_t even, float32x4_t odd) {
    const uint32x4_t u = vreinterpretq_u32_s8(w);
    acc = vfmaq_f32(acc, vreinterpretq_f32_u32(vshlq_n_u32(u, 16)), even);
    return vfmaq_f32(acc, vreinterpretq_f32_u32(vandq_u32(u, vdupq_n_u32(0xFFFF0000u))), odd);
  }
  static HR_INLINE F dot_bf16(F acc, W w, uint32_t a) {
    const float32x4_t even = vreinterpretq_f32_u32(vdupq_n_u32(a << 16));
    const float32x4_t odd = vreinterpretq_f32_u32(vdupq_n_u32(a & 0xFFFF0000u));
    return {pair(acc.a, w.a, even, odd), pair(acc.b, w.b, even, odd), pair(acc.c, w.c, even, odd), pair(acc.d, w.d, even, odd)};
  }
};

}  // namespace

extern const GemmKernels kGemmNeon = kernels_for<Neon>();

}  // namespace headrace
