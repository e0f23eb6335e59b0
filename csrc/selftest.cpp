#include "selftest.h"

#include <math.h>

#include <vector>

#include "gemm.h"
#include "layout.h"
#include "pack.h"

namespace headrace {

#if HEADRACE_HAS_AVX512
namespace {

constexpr int64_t kN = 80, kK = 200, kM = 49;

struct Aligned {
  std::vector<uint8_t> bytes;
  explicit Aligned(int64_t size) : bytes(static_cast<size_t>(size + 64)) {}
  uint8_t* data() { return bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64; }
};

std::vector<float> noise(int64_t count, uint32_t seed) {
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) {
    seed = seed * 1664525u + 1013904223u;
    x = static_cast<float>(static_cast<int32_t>(seed)) * 0x1p-31f;
  }
  return out;
}

bool agrees(WeightFormat format, int32_t group) {
  const std::vector<float> weights = noise(kN * kK, 1), x = noise(kM * kK, 2);
  PackedWeight w{format, group, 0, 0, kN, kK, nullptr};
  Aligned packed(packed_bytes(w)), acts(act_bytes(format, kK, group, kM));
  w.base = packed.data();
  pack_blocks(w, SourceFormat::F32, weights.data(), nullptr, 0, weight_layout(w).blocks);
  kGemmAvx512Bf16.prepare(format, kK, group, x.data(), kK, 0, kM, acts.data());
  for (int64_t m : {1, 5, 16, 17, 32, 49}) {
    std::vector<float> ours(static_cast<size_t>(m * kN)), theirs(ours.size());
    LinearArgs args{&w, acts.data(), m, ours.data(), kN, nullptr, Epilogue::Store, Activation::Silu};
    const Share all{0, weight_layout(w).blocks, 0, m};
    gemm_kernels().linear(args, all);
    args.y = theirs.data();
    kGemmAvx512Bf16.linear(args, all);
    for (size_t i = 0; i < ours.size(); ++i) {
      const float allowed = format == WeightFormat::BF16 ? 1e-4f : 0.0f;
      if (!(fabsf(ours[i] - theirs[i]) <= allowed)) return false;
    }
  }
  return true;
}

}  // namespace

bool tiles_agree_with_avx512() {
  return agrees(WeightFormat::I8, 0) && agrees(WeightFormat::BF16, 0) && agrees(WeightFormat::I8R, 64);
}
#else
bool tiles_agree_with_avx512() { return false; }
#endif

}  // namespace headrace
