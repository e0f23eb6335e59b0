// AVX-512 vectors for gemm_impl.h. Included by the files compiled for AVX-512 or above only.
#pragma once
#include <immintrin.h>

#include "gemm_impl.h"

namespace headrace {

// Each in a file of its own, so that they compile side by side.
void bytes_in_groups_avx512(const LinearArgs& args, const Share& share);
void nibbles_avx512(const LinearArgs& args, const Share& share);

namespace {

template <bool HasBf16>
struct Avx512 {
  static constexpr auto bytes_in_groups = bytes_in_groups_avx512;
  static constexpr auto nibbles = nibbles_avx512;
  using F = __m512;
  using I = __m512i;
  using W = __m512i;
  static constexpr int kRowsFloat = 12, kRowsInt = 12, kRowsGroup8 = 8, kRowsGroup4 = 8, kRowsTwoStreams = 6;

  static HR_INLINE __mmask16 first(int64_t count) {
    return count >= 16 ? 0xFFFF : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
  }

  static HR_INLINE F zero() { return _mm512_setzero_ps(); }
  static HR_INLINE F set(float x) { return _mm512_set1_ps(x); }
  static HR_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
  static HR_INLINE F load_some(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(first(count), p); }
  static HR_INLINE F load_half(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static HR_INLINE void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static HR_INLINE void store_some(float* p, F v, int64_t count) { _mm512_mask_storeu_ps(p, first(count), v); }

  static HR_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  static HR_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static HR_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static HR_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
  static HR_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static HR_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
  static HR_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }  // b where unordered
  static HR_INLINE F abs(F a) { return _mm512_abs_ps(a); }
  static HR_INLINE F copy_sign(F size, F sign) {
    return _mm512_or_ps(abs(size), _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
  }

  static HR_INLINE I zero_int() { return _mm512_setzero_si512(); }
  static HR_INLINE I load_ints(const uint8_t* p) { return _mm512_load_si512(p); }
  static HR_INLINE I set_int(int32_t x) { return _mm512_set1_epi32(x); }
  static HR_INLINE I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  static HR_INLINE I max_int(I a, I b) { return _mm512_max_epi32(a, b); }
  static HR_INLINE I abs_bits(F a) { return _mm512_castps_si512(abs(a)); }
  static HR_INLINE int32_t reduce_max(I a) { return _mm512_reduce_max_epi32(a); }
  static HR_INLINE int32_t reduce_add(I a) { return _mm512_reduce_add_epi32(a); }
  static HR_INLINE F from_int(I a) { return _mm512_cvtepi32_ps(a); }
  static HR_INLINE I round_int(F a) { return _mm512_cvtps_epi32(a); }
  static HR_INLINE F power_of_two(I n) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, set_int(127)), 23)); }
  static HR_INLINE void store_bytes(int8_t* p, I v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v)); }
  static HR_INLINE void store_bf16(uint8_t* p, F v) {
    const I u = _mm512_castps_si512(v);
    const I odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), set_int(1));
    I rounded = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, set_int(0x7FFF))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, _mm512_srli_epi32(u, 16), set_int(0x40));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
  }

  // rotate_64, bit for bit: lane i gets x[i ^ h] + x[i], or x[i ^ h] - x[i] where i has bit h; a product by 1 or -1 is exact.
  static HR_INLINE F signs(int h) {
    const __mmask16 upper = h == 1 ? 0xAAAA : h == 2 ? 0xCCCC : h == 4 ? 0xF0F0 : 0xFF00;
    return _mm512_mask_blend_ps(upper, set(1.0f), set(-1.0f));
  }
  static HR_INLINE void rotate(const float* from, float* to) {
    F x[4];
    unroll<4>([&] HR_EACH(i) {
      F v = _mm512_loadu_ps(from + i * 16);
      v = fma(v, signs(1), _mm512_permute_ps(v, 0xB1));
      v = fma(v, signs(2), _mm512_permute_ps(v, 0x4E));
      v = fma(v, signs(4), _mm512_shuffle_f32x4(v, v, 0xB1));
      x[i] = fma(v, signs(8), _mm512_shuffle_f32x4(v, v, 0x4E));
    });
    const F a = add(x[0], x[1]), b = sub(x[0], x[1]), c = add(x[2], x[3]), d = sub(x[2], x[3]);
    _mm512_store_ps(to, add(a, c));
    _mm512_store_ps(to + 16, add(b, d));
    _mm512_store_ps(to + 32, sub(a, c));
    _mm512_store_ps(to + 48, sub(b, d));
  }

  static HR_INLINE W load_row(const uint8_t* p) { return _mm512_load_si512(p); }
  static HR_INLINE W load_row_u8(const uint8_t* p) { return load_row(p); }
  static HR_INLINE W low_nibbles(W w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
  static HR_INLINE W high_nibbles(W w) { return _mm512_and_si512(_mm512_srli_epi16(w, 4), _mm512_set1_epi8(15)); }
  // Where an int8 sum starts: what the stored offset of the weight (zero point) contributes.
  template <bool Asym>
  static HR_INLINE I start_u8(int32_t offset) {
    return Asym ? zero_int() : set_int(offset);
  }
  // By hand: GCC copies the accumulator around the intrinsic, which costs as much as the product.
  static HR_INLINE I dot_u8(I acc, W w, int32_t a) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(_mm512_set1_epi32(a)));
    return acc;
  }
  static HR_INLINE I dot_u4(I acc, W w, int32_t a) { return dot_u8(acc, w, a); }
  static HR_INLINE F dot_bf16(F acc, W w, uint32_t a) {
    const W pair = _mm512_set1_epi32(static_cast<int32_t>(a));
    if constexpr (HasBf16) {
      asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(w), "v"(pair));
      return acc;
    } else {
      const I high = _mm512_set1_epi32(static_cast<int32_t>(0xFFFF0000u));
      acc = fma(_mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)), acc);
      return fma(_mm512_castsi512_ps(_mm512_and_si512(w, high)), _mm512_castsi512_ps(_mm512_and_si512(pair, high)), acc);
    }
  }
};

}  // namespace
}  // namespace headrace
