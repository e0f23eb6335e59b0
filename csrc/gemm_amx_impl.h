// Linear layers on AMX tiles, written once over a `Tiles` type: the instructions (gemm_amx.cpp) or their emulation
// (gemm_tiles_avx512.cpp), which proves the indexing on machines that have none.
//
// Tiles 0, 1: activations of up to 16 rows each, straight from their records. Tiles 2, 3: the two weight tiles of a block as
// they lie in memory. Tiles 4 … 7: sums, 4 + 2 * row tile + column tile. Int8 sums are exact, so AVX-512 may serve small
// batches of the same weight bit for bit; bf16 sums have an order of their own, so AMX serves every row count. Formats in
// groups, whose rescaling the tiles cannot do, go to AVX-512.
//
// The tile configuration is loaded at every entry: another library, or a signal handler, may have changed it.
#pragma once
#include "gemm_avx512_vec.h"

namespace headrace {
namespace {

using Wide = Avx512<true>;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  // Row tiles of `first` and `second` rows; every tile row is 64 bytes.
  TileConfig(int first, int second) {
    const int used[8] = {first, second, 16, 16, first, first, second, second};
    for (int t = 0; t < 8; ++t) {
      rows[t] = static_cast<uint8_t>(used[t] ? used[t] : 1);
      row_bytes[t] = 64;
    }
  }
};

struct TileJob {
  const LinearArgs* args;
  WeightLayout weight;
  ActLayout acts;
};

constexpr int kTileRowGroup = 32;
constexpr int64_t kTileAhead = 8192;

// Sums of up to 32 rows and one block, as int32 or fp32 bits: [row tile][column tile][16][16].
struct alignas(64) TileSums {
  uint8_t bytes[2][2][16 * 64];
  const uint8_t* row(int r, int tile) const { return bytes[r / 16][tile] + r % 16 * 64; }
};

// One block times `rows` rows from `acts`. `ahead`: see Operands in gemm_impl.h.
template <class Tiles, bool Int8>
void multiply_tiles(const TileJob& job, const uint8_t* w, const uint8_t* acts, int rows, const int64_t* ahead, TileSums& sums) {
  const int64_t stride = job.acts.row_bytes;
  Tiles::template zero<4>();
  Tiles::template zero<5>();
  Tiles::template zero<6>();
  Tiles::template zero<7>();
  for (int64_t step = 0; step < job.weight.steps; ++step, w += 2048, acts += 64) {
    for (int line = 0; line < 16; ++line) {
      prefetch(w + line * 64 + ahead[0]);
      prefetch(w + 1024 + line * 64 + ahead[1]);
    }
    Tiles::template load<0>(acts, stride);
    Tiles::template load<2>(w, 64);
    Tiles::template dot<4, 0, 2, Int8>();
    Tiles::template load<3>(w + 1024, 64);
    Tiles::template dot<5, 0, 3, Int8>();
    if (rows > 16) {
      Tiles::template load<1>(acts + 16 * stride, stride);
      Tiles::template dot<6, 1, 2, Int8>();
      Tiles::template dot<7, 1, 3, Int8>();
    }
  }
  Tiles::template store<4>(sums.bytes[0][0]);
  Tiles::template store<5>(sums.bytes[0][1]);
  if (rows > 16) {
    Tiles::template store<6>(sums.bytes[1][0]);
    Tiles::template store<7>(sums.bytes[1][1]);
  }
}

// The float operations of MicroI8, in its order: bit for bit its results.
Wide::F scaled(const uint8_t* sums, const uint8_t* record, int64_t meta, const float* scale) {
  const auto exact = Wide::add_int(Wide::load_ints(sums), Wide::set_int(load_as<int32_t>(record + meta + 4)));
  return Wide::mul(Wide::from_int(exact), Wide::mul(Wide::load(scale), Wide::set(load_as<float>(record + meta))));
}

template <bool Int8>
void finish_tiles(const TileJob& job, int64_t block, const uint8_t* w, int64_t row, int rows, const TileSums& sums) {
  const float* scale = reinterpret_cast<const float*>(w + job.weight.steps * 2048);
  const uint8_t* records = static_cast<const uint8_t*>(job.args->acts) + row * job.acts.row_bytes;
  alignas(64) float floats[kTileRowGroup * kBlockColumns];
  for (int r = 0; r < rows; ++r) {
    const uint8_t* record = records + r * job.acts.row_bytes;
    for (int t = 0; t < 2; ++t) {
      float* to = floats + r * kBlockColumns + t * kTileColumns;
      if constexpr (Int8) {
        Wide::store(to, scaled(sums.row(r, t), record, job.acts.meta, scale + t * kTileColumns));
      } else {
        __builtin_memcpy(to, sums.row(r, t), 64);
      }
    }
  }
  finish<Wide>(*job.args, block, row, rows, floats, kBlockColumns);
}

template <class Tiles, bool Int8>
void walk_tiles(const TileJob& job, const Share& share) {
  const uint8_t* base = static_cast<const uint8_t*>(job.args->w->base);
  const uint8_t* acts = static_cast<const uint8_t*>(job.args->acts);
  const int64_t groups = (share.row1 - share.row0 + kTileRowGroup - 1) / kTileRowGroup;
  TileSums sums;
  int configured = 0;
  for (int64_t block = share.block0; block < share.block1; ++block) {
    const uint8_t* w = base + block * job.weight.block_bytes;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t row = share.row0 + group * kTileRowGroup;
      const int rows = static_cast<int>(share.row1 - row < kTileRowGroup ? share.row1 - row : kTileRowGroup);
      if (rows != configured) {
        Tiles::configure(TileConfig(rows < 16 ? rows : 16, rows > 16 ? rows - 16 : 0));
        configured = rows;
      }
      const int64_t next = block + 1 < share.block1 ? job.weight.block_bytes : 0;
      const int64_t ahead[2] = {groups == 1 ? kTileAhead : group == 0 ? next : 0,
                                groups == 1 ? kTileAhead : group == 1 ? next : 0};
      multiply_tiles<Tiles, Int8>(job, w, acts + row * job.acts.row_bytes, rows, ahead, sums);
      finish_tiles<Int8>(job, block, w, row, rows, sums);
    }
  }
  Tiles::release();
}

// Below this many rows the weights cannot be read faster than VNNI uses them.
constexpr int64_t kFewestTileRows = 5;

template <class Tiles>
void linear_on_tiles(const LinearArgs& args, const Share& share) {
  const PackedWeight& w = *args.w;
  const TileJob job{&args, weight_layout(w), act_layout(w.format, w.k, w.group)};
  if (share.row1 <= share.row0) return;
  if (w.format == WeightFormat::BF16) return walk_tiles<Tiles, false>(job, share);
  if (w.format == WeightFormat::I8 && share.row1 - share.row0 >= kFewestTileRows) return walk_tiles<Tiles, true>(job, share);
  kGemmAvx512Bf16.linear(args, share);
}

void prepare_for_tiles(WeightFormat format, int64_t k, int32_t group, const float* x, int64_t ldx, int64_t m0, int64_t m1,
                       void* acts) {
  kGemmAvx512Bf16.prepare(format, k, group, x, ldx, m0, m1, acts);
}

}  // namespace
}  // namespace headrace
