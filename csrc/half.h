// fp16 and bf16 conversions in plain C++: for packing and for the generic path. `static`: see layout.h.
#pragma once
#include <cstdint>

namespace headrace {

static inline uint32_t float_bits(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}

static inline float bits_float(uint32_t u) {
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}

static inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, body = h & 0x7FFFu;
  if (body >= 0x7C00u) return bits_float(sign | 0x7F800000u | (body & 0x3FFu) << 13);
  // The exponent field moved to fp32's place is 2^112 too small; the product mends it, subnormals included.
  return bits_float(sign | float_bits(bits_float(body << 13) * 0x1p112f));
}

// Nearest even; overflow gives infinity.
static inline uint16_t float_to_half(float x) {
  const uint32_t u = float_bits(x), sign = (u >> 16) & 0x8000u, body = u & 0x7FFFFFFFu;
  if (body > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);
  if (body >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);
  if (body < 0x38800000u) {  // subnormal half: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
    return static_cast<uint16_t>(sign | (float_bits(bits_float(body) + 0.5f) - 0x3F000000u));
  }
  return static_cast<uint16_t>(sign | ((body + 0xFFFu + ((body >> 13) & 1u) - 0x38000000u) >> 13));
}

static inline uint16_t float_to_bf16(float x) {
  const uint32_t u = float_bits(x);
  if (x != x) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

static inline float bf16_to_float(uint16_t h) { return bits_float(static_cast<uint32_t>(h) << 16); }

}  // namespace headrace
