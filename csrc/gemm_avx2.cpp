// Linear layers on AVX2: int8 products by AVX-VNNI where the CPU has it, else by 16-bit multiply-adds that cannot saturate.
#include <immintrin.h>

#include "gemm_impl.h"

namespace headrace {
namespace {

// Sixteen columns are two registers.
struct F16 {
  __m256 a, b;
};
struct I16 {
  __m256i a, b;
};

template <bool HasVnni>
struct Avx2 {
  using F = F16;
  using I = I16;
  using W = I16;
  static constexpr int kRowsFloat = 3, kRowsInt = 3, kRowsGroup8 = 2, kRowsGroup4 = 2, kRowsTwoStreams = 1;

  static HR_INLINE F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static HR_INLINE F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static HR_INLINE F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static HR_INLINE __m256i first(int64_t count) {
    const int32_t n = count >= 8 ? 8 : count <= 0 ? 0 : static_cast<int32_t>(count);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static HR_INLINE F load_some(const float* p, int64_t count) {
    if (count >= 16) return load(p);
    return {_mm256_maskload_ps(p, first(count)), _mm256_maskload_ps(p + 8, first(count - 8))};
  }
  static HR_INLINE F load_half(const uint8_t* p) {
    const __m128i* q = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
  }
  static HR_INLINE void store(float* p, F v) {
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
  }
  static HR_INLINE void store_some(float* p, F v, int64_t count) {
    if (count >= 16) return store(p, v);
    _mm256_maskstore_ps(p, first(count), v.a);
    _mm256_maskstore_ps(p + 8, first(count - 8), v.b);
  }

  static HR_INLINE F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static HR_INLINE F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static HR_INLINE F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static HR_INLINE F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
  static HR_INLINE F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
  static HR_INLINE F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
  static HR_INLINE F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }  // y where unordered
  static HR_INLINE F abs(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
  }
  static HR_INLINE F copy_sign(F size, F sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    const F s = abs(size);
    return {_mm256_or_ps(s.a, _mm256_and_ps(sign.a, bit)), _mm256_or_ps(s.b, _mm256_and_ps(sign.b, bit))};
  }

  static HR_INLINE I zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static HR_INLINE I load_ints(const uint8_t* p) { return load_row(p); }
  static HR_INLINE I set_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
  static HR_INLINE I add_int(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
  static HR_INLINE I max_int(I x, I y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
  static HR_INLINE I abs_bits(F x) {
    const F y = abs(x);
    return {_mm256_castps_si256(y.a), _mm256_castps_si256(y.b)};
  }
  static HR_INLINE int32_t reduce_max(I x) {
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_max_epi32(x.a, x.b));
    int32_t top = lanes[0];
    for (int32_t lane : lanes) top = lane > top ? lane : top;
    return top;
  }
  static HR_INLINE int32_t reduce_add(I x) {
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi32(x.a, x.b));
    int32_t total = 0;
    for (int32_t lane : lanes) total += lane;
    return total;
  }
  static HR_INLINE F from_int(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
  static HR_INLINE I round_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
  static HR_INLINE F power_of_two(I n) {
    const __m256i bias = _mm256_set1_epi32(127);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.a, bias), 23)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.b, bias), 23))};
  }
  // Sixteen 32-bit lanes, each within 16 bits unsigned, to 16-bit lanes in order.
  static HR_INLINE __m256i narrow(__m256i a, __m256i b) {
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xD8);
  }
  static HR_INLINE void store_bytes(int8_t* p, I v) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.a, v.b), 0xD8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  }
  static HR_INLINE __m256i bf16_bits(__m256 v) {
    const __m256i u = _mm256_castps_si256(v);
    const __m256i high = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
  }
  static HR_INLINE void store_bf16(uint8_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(bf16_bits(v.a), bf16_bits(v.b)));
  }

  static HR_INLINE W load_row(const uint8_t* p) {
    const __m256i* q = reinterpret_cast<const __m256i*>(p);
    return {_mm256_load_si256(q), _mm256_load_si256(q + 1)};
  }
  static HR_INLINE W load_row_u8(const uint8_t* p) { return load_row(p); }
  static HR_INLINE W low_nibbles(W w) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(w.a, mask), _mm256_and_si256(w.b, mask)};
  }
  static HR_INLINE W high_nibbles(W w) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(_mm256_srli_epi16(w.a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(w.b, 4), mask)};
  }
  template <bool Asym>
  static HR_INLINE I start_u8(int32_t offset) {
    return Asym ? zero_int() : set_int(offset);
  }

  // The VEX form by hand: the file is compiled without -mavxvnni so that nothing else in it needs the extension.
  static HR_INLINE __m256i vnni(__m256i acc, __m256i w, __m256i a) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(w), "x"(a));
    return acc;
  }
  // u8 x s8 in 16-bit lanes: even and odd bytes apart, so that no pair of products is ever added in 16 bits.
  static HR_INLINE __m256i wide_dot(__m256i acc, __m256i w, __m256i even, __m256i odd) {
    const __m256i low = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(0xFF)), even);
    const __m256i high = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), odd);
    return _mm256_add_epi32(acc, _mm256_add_epi32(low, high));
  }
  static HR_INLINE I dot_u8(I acc, W w, int32_t a) {
    const __m256i four = _mm256_set1_epi32(a);
    if constexpr (HasVnni) return {vnni(acc.a, w.a, four), vnni(acc.b, w.b, four)};
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8), odd = _mm256_srai_epi16(four, 8);
    return {wide_dot(acc.a, w.a, even, odd), wide_dot(acc.b, w.b, even, odd)};
  }
  // u4: 2 * 15 * 127 fits 16 bits.
  static HR_INLINE I dot_u4(I acc, W w, int32_t a) {
    const __m256i four = _mm256_set1_epi32(a);
    if constexpr (HasVnni) return {vnni(acc.a, w.a, four), vnni(acc.b, w.b, four)};
    const __m256i one = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(_mm256_maddubs_epi16(w.a, four), one)),
            _mm256_add_epi32(acc.b, _mm256_madd_epi16(_mm256_maddubs_epi16(w.b, four), one))};
  }
  static HR_INLINE F dot_bf16(F acc, W w, uint32_t a) {
    const __m256i high = _mm256_set1_epi32(static_cast<int32_t>(0xFFFF0000u));
    const __m256 even = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int32_t>(a << 16)));
    const __m256 odd = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int32_t>(a & 0xFFFF0000u)));
    acc.a = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(w.a, 16)), even, acc.a);
    acc.b = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(w.b, 16)), even, acc.b);
    acc.a = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(w.a, high)), odd, acc.a);
    acc.b = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(w.b, high)), odd, acc.b);
    return acc;
  }
};

}  // namespace

extern const GemmKernels kGemmAvx2 = kernels_for<Avx2<false>>();
extern const GemmKernels kGemmAvxVnni = kernels_for<Avx2<true>, Avx2<false>>();

}  // namespace headrace
