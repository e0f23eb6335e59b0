// Linear layers on AMX tiles, written once over a `Tiles` type: the instructions (gemm_amx.cpp) or their emulation
// (gemm_tiles_avx512.cpp), which proves the indexing on machines that have none.
//
// Tiles 0, 1: activations of up to 16 rows each, straight from their records. Tiles 2, 3: the two weight tiles of a block as
// they lie in memory. Tiles 4 … 7: sums, 4 + 2 * row tile + column tile. Int8 sums are exact, so AVX-512 may serve small
// batches of the same weight bit for bit; bf16 sums have an order of their own, so AMX serves every row count. Rotated int8
// leaves the tiles after each group, to be scaled and added by AVX-512; its groups are long enough for that. Formats in
// groups of 32, whose rescaling would take several times as long as the products, go to AVX-512 altogether.
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

enum class TileKind { Bf16, Int8, Rotated };

// Some rows of activations, as they meet block after block.
struct TileRows {
  int64_t row;
  int rows;
  const uint8_t* records;
  int64_t ahead[2];  // how far in front of the two weight tiles to fetch
};

// The sums of `count` tile rows of products, from zero.
template <class Tiles, bool Int8>
HR_INLINE void multiply_tiles(const uint8_t* w, const uint8_t* acts, int64_t stride, const TileRows& of, int64_t count,
                              TileSums& sums) {
  Tiles::template zero<4>();
  Tiles::template zero<5>();
  Tiles::template zero<6>();
  Tiles::template zero<7>();
  for (int64_t part = 0; part < count; ++part, w += 2048, acts += 64) {
    for (int line = 0; line < 16; ++line) {
      prefetch(w + line * 64 + of.ahead[0]);
      prefetch(w + 1024 + line * 64 + of.ahead[1]);
    }
    Tiles::template load<0>(acts, stride);
    Tiles::template load<2>(w, 64);
    Tiles::template dot<4, 0, 2, Int8>();
    Tiles::template load<3>(w + 1024, 64);
    Tiles::template dot<5, 0, 3, Int8>();
    if (of.rows > 16) {
      Tiles::template load<1>(acts + 16 * stride, stride);
      Tiles::template dot<6, 1, 2, Int8>();
      Tiles::template dot<7, 1, 3, Int8>();
    }
  }
  Tiles::template store<4>(sums.bytes[0][0]);
  Tiles::template store<5>(sums.bytes[0][1]);
  if (of.rows > 16) {
    Tiles::template store<6>(sums.bytes[1][0]);
    Tiles::template store<7>(sums.bytes[1][1]);
  }
}

// Integer sums of a row and tile as floats, from the record's `offset`.
HR_INLINE Wide::F exact_sums(const uint8_t* sums, const uint8_t* offset) {
  return Wide::from_int(Wide::add_int(Wide::load_ints(sums), Wide::set_int(load_as<int32_t>(offset))));
}

// The float operations of MicroI8, in its order: bit for bit its results.
void scale_tiles(const TileJob& job, const uint8_t* scales, const TileRows& of, const TileSums& sums, float* floats) {
  for (int r = 0; r < of.rows; ++r) {
    const uint8_t* meta = of.records + r * job.acts.row_bytes + job.acts.meta;
    const auto act_scale = Wide::set(load_as<float>(meta));
    for (int t = 0; t < 2; ++t) {
      const auto both = Wide::mul(Wide::load(reinterpret_cast<const float*>(scales) + t * kTileColumns), act_scale);
      Wide::store(floats + (r * 2 + t) * kTileColumns, Wide::mul(exact_sums(sums.row(r, t), meta + 4), both));
    }
  }
}

// Those of add_group in gemm_impl.h.
void add_tiles(const TileJob& job, const uint8_t* scales, const TileRows& of, int64_t group, const TileSums& sums,
               float* floats) {
  const Wide::F scale[2] = {Wide::load_half(scales), Wide::load_half(scales + 32)};
  for (int r = 0; r < of.rows; ++r) {
    const uint8_t* meta = of.records + r * job.acts.row_bytes + job.acts.meta + group * 4;
    const auto act_scale = Wide::set(load_as<float>(meta));
    for (int t = 0; t < 2; ++t) {
      float* at = floats + (r * 2 + t) * kTileColumns;
      const auto sum = exact_sums(sums.row(r, t), meta + job.acts.groups * 4);
      Wide::store(at, Wide::fma(sum, Wide::mul(scale[t], act_scale), Wide::load(at)));
    }
  }
}

// One block times `of.rows` rows: fp32 [rows][2][16].
template <class Tiles, TileKind Kind>
void multiply_block(const TileJob& job, const uint8_t* w, const TileRows& of, float* floats) {
  const WeightLayout& l = job.weight;
  const int64_t stride = job.acts.row_bytes;
  TileSums sums[2];  // two: a group's products need not wait until the one before is added
  if constexpr (Kind == TileKind::Rotated) {
    __builtin_memset(floats, 0, static_cast<size_t>(of.rows) * kBlockColumns * 4);
    for (int64_t group = 0; group < l.steps; ++group, w += l.step_bytes) {
      multiply_tiles<Tiles, true>(w, of.records + group * l.step_k, stride, of, l.step_k / 64, sums[group % 2]);
      add_tiles(job, w + l.data_bytes, of, group, sums[group % 2], floats);
    }
  } else {
    multiply_tiles<Tiles, Kind == TileKind::Int8>(w, of.records, stride, of, l.steps, sums[0]);
    if constexpr (Kind == TileKind::Int8) {
      scale_tiles(job, w + l.steps * 2048, of, sums[0], floats);
    } else {
      for (int r = 0; r < of.rows; ++r) {
        for (int t = 0; t < 2; ++t) __builtin_memcpy(floats + (r * 2 + t) * kTileColumns, sums[0].row(r, t), 64);
      }
    }
  }
}

template <class Tiles, TileKind Kind>
void walk_tiles(const TileJob& job, const Share& share) {
  const uint8_t* acts = static_cast<const uint8_t*>(job.args->acts);
  const int64_t groups = (share.row1 - share.row0 + kTileRowGroup - 1) / kTileRowGroup;
  alignas(64) float floats[kTileRowGroup * kBlockColumns];
  int configured = 0;
  for (int64_t block = share.block0; block < share.block1; ++block) {
    const uint8_t* w = static_cast<const uint8_t*>(job.args->w->base) + block * job.weight.block_bytes;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t row = share.row0 + group * kTileRowGroup;
      const int rows = static_cast<int>(share.row1 - row < kTileRowGroup ? share.row1 - row : kTileRowGroup);
      if (rows != configured) {
        Tiles::configure(TileConfig(rows < 16 ? rows : 16, rows > 16 ? rows - 16 : 0));
        configured = rows;
      }
      const int64_t next = block + 1 < share.block1 ? job.weight.block_bytes : 0;
      const TileRows of{row, rows, acts + row * job.acts.row_bytes,
                        {groups == 1 ? kTileAhead : group == 0 ? next : 0, groups == 1 ? kTileAhead : group == 1 ? next : 0}};
      multiply_block<Tiles, Kind>(job, w, of, floats);
      finish<Wide>(*job.args, block, row, rows, floats, kBlockColumns);
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
  if (w.format == WeightFormat::BF16) return walk_tiles<Tiles, TileKind::Bf16>(job, share);
  if (share.row1 - share.row0 >= kFewestTileRows) {
    if (w.format == WeightFormat::I8) return walk_tiles<Tiles, TileKind::Int8>(job, share);
    if (w.format == WeightFormat::I8R) return walk_tiles<Tiles, TileKind::Rotated>(job, share);
  }
  kGemmAvx512Bf16.linear(args, share);
}

void prepare_for_tiles(WeightFormat format, int64_t k, int32_t group, const float* x, int64_t ldx, int64_t m0, int64_t m1,
                       void* acts) {
  kGemmAvx512Bf16.prepare(format, k, group, x, ldx, m0, m1, acts);
}

}  // namespace
}  // namespace headrace
