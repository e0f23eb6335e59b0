// Philox4x32-10 (Salmon et al. 2011), laid out as in headrace/sampling/random.py: a draw depends on its seed and counter.
#pragma once
#include <cstdint>

namespace headrace {

// Uniform number in [0, 1) that decides output token `num_output` of the sequence with this seed.
inline double philox_uniform(uint64_t seed, uint32_t num_output) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = num_output, c1 = 0, c2 = 0, c3 = 0;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0, n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c0 = n0;
    c1 = static_cast<uint32_t>(p1);
    c2 = n2;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const uint64_t word = static_cast<uint64_t>(c0) << 32 | c1;
  return static_cast<double>(word >> 11) * 0x1p-53;
}

}  // namespace headrace
