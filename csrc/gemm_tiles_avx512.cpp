// The AMX path with its instructions emulated one number at a time: same indexing, same sums. For tests, never chosen.
#include "gemm_amx_impl.h"
#include "half.h"

namespace headrace {
namespace {

struct Tile {
  alignas(64) uint8_t bytes[16][64];
};

struct EmulatedTiles {
  static thread_local Tile tiles[8];
  static thread_local TileConfig config;

  static void configure(const TileConfig& wanted) {
    config = wanted;
    for (Tile& tile : tiles) __builtin_memset(&tile, 0xEE, sizeof tile);  // real contents are zeroed: rely on neither
  }
  static void release() { config = TileConfig(0, 0); }
  template <int T>
  static void zero() {
    __builtin_memset(&tiles[T], 0, sizeof(Tile));
  }
  template <int T>
  static void load(const uint8_t* p, int64_t stride) {
    for (int r = 0; r < config.rows[T]; ++r) __builtin_memcpy(tiles[T].bytes[r], p + r * stride, config.row_bytes[T]);
  }
  template <int T>
  static void store(uint8_t* p) {
    for (int r = 0; r < config.rows[T]; ++r) __builtin_memcpy(p + r * 64, tiles[T].bytes[r], config.row_bytes[T]);
  }
  template <int Sum, int A, int B, bool Int8>
  static void dot() {
    for (int m = 0; m < config.rows[Sum]; ++m) {
      for (int n = 0; n < 16; ++n) {
        uint8_t* sum = tiles[Sum].bytes[m] + n * 4;
        if constexpr (Int8) {
          int32_t total = load_as<int32_t>(sum);
          for (int k = 0; k < 64; ++k) total += static_cast<int8_t>(tiles[A].bytes[m][k]) * tiles[B].bytes[k / 4][n * 4 + k % 4];
          __builtin_memcpy(sum, &total, 4);
        } else {
          const float total = load_as<float>(sum) + pair_sums(tiles[A].bytes[m], tiles[B], n);
          __builtin_memcpy(sum, &total, 4);
        }
      }
    }
  }
  // One instruction's contribution: even and odd k apart, each a chain of fma, then added.
  static float pair_sums(const uint8_t* a, const Tile& b, int n) {
    float even = 0.0f, odd = 0.0f;
    for (int k = 0; k < 16; ++k) {
      even = __builtin_fmaf(bf16_to_float(load_as<uint16_t>(a + k * 4)), bf16_to_float(load_as<uint16_t>(b.bytes[k] + n * 4)), even);
      odd = __builtin_fmaf(bf16_to_float(load_as<uint16_t>(a + k * 4 + 2)), bf16_to_float(load_as<uint16_t>(b.bytes[k] + n * 4 + 2)), odd);
    }
    return even + odd;
  }
};

thread_local Tile EmulatedTiles::tiles[8];
thread_local TileConfig EmulatedTiles::config(0, 0);

int32_t spin_nothing(int64_t, const uint8_t*) { return 0; }
int32_t read_for_tiles(const uint8_t* p, int64_t bytes) { return kGemmAvx512Bf16.read_memory(p, bytes); }

}  // namespace

extern const GemmKernels kGemmAmxEmulated = {prepare_for_tiles, linear_on_tiles<EmulatedTiles>, spin_nothing, 0,
                                             spin_nothing,      0,                              read_for_tiles};

}  // namespace headrace
