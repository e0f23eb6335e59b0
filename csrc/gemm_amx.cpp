// The AMX instructions, and the limit they set.
#include "gemm_amx_impl.h"

namespace headrace {
namespace {

// By hand: the intrinsics of some compilers are macros that take a tile's number only as a written-out digit.
struct AmxTiles {
  static HR_INLINE void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config) : "memory"); }
  static HR_INLINE void release() { asm volatile("tilerelease" ::: "memory"); }
  template <int T>
  static HR_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T) : "memory");
  }
  template <int T>
  static HR_INLINE void load(const uint8_t* p, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  static HR_INLINE void store(uint8_t* p) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(int64_t{64}), "i"(T) : "memory");
  }
  // Sum += A (signed activations) x B (unsigned weights), or bf16 pairs.
  template <int Sum, int A, int B, bool Int8>
  static HR_INLINE void dot() {
    if constexpr (Int8) {
      asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B) : "memory");
    } else {
      asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B) : "memory");
    }
  }
};

// One iteration: four products of full tiles, 16 x 16 x 64 bytes each.
template <bool Int8>
int32_t spin_tiles(int64_t iterations, const uint8_t* row) {
  TileSums sums;
  AmxTiles::configure(TileConfig(16, 16));
  AmxTiles::zero<4>();
  AmxTiles::zero<5>();
  AmxTiles::zero<6>();
  AmxTiles::zero<7>();
  AmxTiles::load<0>(row, 0);
  AmxTiles::load<1>(row, 0);
  AmxTiles::load<2>(row, 0);
  AmxTiles::load<3>(row, 0);
  for (int64_t i = 0; i < iterations; ++i) {
    AmxTiles::dot<4, 0, 2, Int8>();
    AmxTiles::dot<5, 0, 3, Int8>();
    AmxTiles::dot<6, 1, 2, Int8>();
    AmxTiles::dot<7, 1, 3, Int8>();
  }
  AmxTiles::store<7>(sums.bytes[0][0]);
  AmxTiles::release();
  return load_as<int32_t>(sums.bytes[0][0]);
}

int32_t read_for_tiles(const uint8_t* p, int64_t bytes) { return kGemmAvx512Bf16.read_memory(p, bytes); }

}  // namespace

// 4 products = 4 * 256 sums of 64 bytes: as many multiply-adds as 1024 dots of 16 columns x 4 bytes.
extern const GemmKernels kGemmAmx = {prepare_for_tiles, linear_on_tiles<AmxTiles>, spin_tiles<true>, 1024,
                                     spin_tiles<false>, 1024,                      read_for_tiles};

}  // namespace headrace
