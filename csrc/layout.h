// Where each byte of a packed weight and of prepared activations lies. The one place that knows; included by pack.cpp and by
// every gemm_<isa>.cpp, hence `static`: no copy compiled for one ISA may be merged with another's by the linker.
//
// Weight: N/32 blocks of 32 columns, one after another; a block is a single sequential stream of steps along K:
//
//   F32   step = 1 k    [32] f32
//   BF16  step = 32 k   [2 tiles][16 rows][16 columns][2 k] bf16                                   2048 B
//   I8    step = 64 k   [2][16][16][4] u8 = w + 128; after the last step f32 scale[32]             2048 B
//   I8G   step = 64 k   [2][16][16][4] u8, then f16 scale[groups][32], f16 bias[groups][32] if asymmetric
//   I4G   step = 64 k   [2][8][16][4], low nibble k = 4 row + b, high nibble k = 32 + 4 row + b, then scales and biases
//         (group 128: a step is 128 k: two such data parts, then one group of scales)
//   I8R   step = one group of 64, 128, 192 or 256 k: as many I8G parts of the rotated weights, then f16 scale[32]
//
// A tile row is 64 bytes: one operand of vpdpbusd / vdpbf16ps for 16 columns, or one row of an AMX B tile.
// Symmetric: w = scale * (u - zero), zero = 128 or 8. Asymmetric: w = scale * u + bias.
// Padding: columns past N have scale 0; k past K meets activations that are 0.
//
// Prepared activations: one record per row, record size an odd multiple of 64 bytes so that the same k of successive rows
// falls into different cache sets. Quantized: s8 q[k padded]; then I8: {f32 scale, i32 -128*sum(q)};
// I8G, I4G: f32 scale[groups], i32 -zero*sum(q)[groups], f32 scale*sum(q)[groups]; I8R: the first two.
//
// Rotation: each 64 k of a weight row and of an activation row (padded with zeros) are multiplied by the same orthogonal
// matrix H/8, H the Walsh-Hadamard matrix of order 64. Products stay what they were, and numbers that stick out are
// spread over 64, so that one scale can serve many more of them. H is its own inverse but for the factor.
#pragma once
#include "linear.h"

namespace headrace {

constexpr int kBlockColumns = 32;
constexpr int kTileColumns = 16;
constexpr int kRotation = 64;
constexpr float kRotationScale = 0.125f;  // H/8 is orthogonal
constexpr int64_t kMostRotatedGroup = 256;

// x = H x. Each addition is rounded once and the order is fixed: every ISA gets the same bits.
static inline void rotate_64(float* x) {
  for (int h = 1; h < kRotation; h *= 2) {
    for (int i = 0; i < kRotation; i += 2 * h) {
      for (int j = i; j < i + h; ++j) {
        const float a = x[j], b = x[j + h];
        x[j] = a + b;
        x[j + h] = a - b;
      }
    }
  }
}

struct WeightLayout {
  int64_t blocks;       // N / 32, rounded up (interleaved: gate columns / 16)
  int64_t steps;        // along K
  int64_t step_k;       // k per step
  int64_t step_bytes;   // data, scales, biases
  int64_t data_bytes;   // of a step: where its scales begin
  int64_t block_bytes;  // steps * step_bytes + tail
  int64_t groups;       // groups per step (0: not grouped)
};

static inline int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

static inline WeightLayout weight_layout(WeightFormat format, int64_t n, int64_t k, int32_t group, int32_t asymmetric) {
  WeightLayout l{};
  int64_t tail = 0;
  switch (format) {
    case WeightFormat::F32:
      l.step_k = 1;
      l.data_bytes = 128;
      break;
    case WeightFormat::BF16:
      l.step_k = 32;
      l.data_bytes = 2048;
      break;
    case WeightFormat::I8:
      l.step_k = 64;
      l.data_bytes = 2048;
      tail = 128;
      break;
    case WeightFormat::I8G:
    case WeightFormat::I4G:
      l.step_k = group > 64 ? group : 64;
      l.data_bytes = l.step_k * (format == WeightFormat::I8G ? 32 : 16);
      l.groups = l.step_k / group;
      break;
    case WeightFormat::I8R:
      l.step_k = group;
      l.data_bytes = l.step_k * 32;
      l.groups = 1;
      break;
  }
  l.step_bytes = l.data_bytes + l.groups * 64 * (asymmetric ? 2 : 1);
  l.blocks = (n + kBlockColumns - 1) / kBlockColumns;
  l.steps = (k + l.step_k - 1) / l.step_k;
  l.block_bytes = l.steps * l.step_bytes + tail;
  return l;
}

// Gate and up columns are padded to 16 each when interleaved, so that a block holds 16 of both.
static inline int64_t packed_columns(int64_t n, int32_t interleaved) {
  return interleaved ? 2 * round_up(n / 2, kTileColumns) : n;
}

static inline WeightLayout weight_layout(const PackedWeight& w) {
  return weight_layout(w.format, packed_columns(w.n, w.interleaved), w.k, w.group, w.asymmetric);
}

struct ActLayout {
  int64_t k_padded;
  int64_t groups;      // per row, padding included
  int64_t meta;        // byte offset of the numbers behind the row
  int64_t row_bytes;   // of a record
};

static inline ActLayout act_layout(WeightFormat format, int64_t k, int32_t group) {
  ActLayout l{};
  int64_t bytes = 0;
  switch (format) {
    case WeightFormat::F32:
      l.k_padded = round_up(k, 16);
      l.meta = bytes = l.k_padded * 4;
      break;
    case WeightFormat::BF16:
      l.k_padded = round_up(k, 32);
      l.meta = bytes = l.k_padded * 2;
      break;
    case WeightFormat::I8:
      l.k_padded = round_up(k, 64);
      l.meta = l.k_padded;
      bytes = l.meta + 8;
      break;
    case WeightFormat::I8G:
    case WeightFormat::I4G:
      l.k_padded = round_up(k, group > 64 ? group : 64);
      l.groups = l.k_padded / group;
      l.meta = l.k_padded;
      bytes = l.meta + l.groups * 12;
      break;
    case WeightFormat::I8R:
      l.k_padded = round_up(k, group);
      l.groups = l.k_padded / group;
      l.meta = l.k_padded;
      bytes = l.meta + l.groups * 8;
      break;
  }
  l.row_bytes = round_up(bytes, 64);
  if (l.row_bytes / 64 % 2 == 0) l.row_bytes += 64;
  return l;
}

}  // namespace headrace
