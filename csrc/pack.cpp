#include "pack.h"

#include <math.h>
#include <string.h>

#include "half.h"
#include "layout.h"

namespace headrace {
namespace {

constexpr float kLargestHalf = 65504.0f;
constexpr int64_t kMaxStepK = kMostRotatedGroup;  // k per step at most

// One column's step: codes for step_k weights and, when grouped, fp16 scale and bias of each of its groups.
struct ColumnStep {
  uint8_t codes[kMaxStepK];
  uint16_t scale[2], bias[2];
};

// ---- from fp32 --------------------------------------------------------------------------------------------------------------

uint16_t half_scale(float x) { return float_to_half(x > kLargestHalf ? kLargestHalf : x < -kLargestHalf ? -kLargestHalf : x); }

uint8_t nearest_code(float x, float inverse, int zero, int top) {
  const float code = nearbyintf(x * inverse) + static_cast<float>(zero);
  return static_cast<uint8_t>(code < 0.0f ? 0.0f : code > static_cast<float>(top) ? static_cast<float>(top) : code);
}

// Codes and scale of one group of `count` weights (the rest of the group is padding). The scale is rounded to fp16 first
// and the codes are nearest to that.
void round_group(const float* x, int64_t count, int64_t group, int bits, bool asymmetric, uint8_t* codes, uint16_t* scale,
                 uint16_t* bias) {
  const int top = (1 << bits) - 1, zero = 1 << (bits - 1);
  float low = 0.0f, high = 0.0f;
  for (int64_t k = 0; k < count; ++k) {
    low = x[k] < low || k == 0 ? x[k] : low;
    high = x[k] > high || k == 0 ? x[k] : high;
  }
  for (int64_t k = count; k < group; ++k) codes[k] = static_cast<uint8_t>(asymmetric ? 0 : zero);
  *bias = 0;
  float step = 0.0f, origin = 0.0f;
  if (asymmetric) {
    *bias = half_scale(low);
    origin = half_to_float(*bias);
    step = (high - origin) / static_cast<float>(top);
  } else if (bits == 4) {  // the end with the larger magnitude gets code 0: the range is -8 … 7
    step = high > -low ? high / -static_cast<float>(zero) : low / -static_cast<float>(zero);
  } else {
    step = (high > -low ? high : -low) / static_cast<float>(zero - 1);
  }
  *scale = half_scale(step);
  const float rounded = half_to_float(*scale);
  const float inverse = rounded != 0.0f ? 1.0f / rounded : 0.0f;
  for (int64_t k = 0; k < count; ++k) codes[k] = nearest_code(x[k] - origin, inverse, asymmetric ? 0 : zero, top);
}

// ---- from GGUF blocks ---------------------------------------------------------------------------------------------------------

uint16_t read_half(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }

// Nibbles of 32 weights: byte j holds weight j low and weight j + 16 high.
void split_nibbles(const uint8_t* qs, uint8_t* codes) {
  for (int j = 0; j < 16; ++j) {
    codes[j] = qs[j] & 15;
    codes[j + 16] = qs[j] >> 4;
  }
}

// The fifth bits of 32 weights, bit j for weight j.
void add_fifth_bits(const uint8_t* qh, uint8_t* codes) {
  for (int j = 0; j < 32; ++j) codes[j] = static_cast<uint8_t>(codes[j] | (qh[j / 8] >> (j % 8) & 1) << 4);
}

// K types: 6-bit scale and minimum of sub-block j of 8, packed in 12 bytes.
void k_scale_min(const uint8_t* s, int j, int* scale, int* minimum) {
  if (j < 4) {
    *scale = s[j] & 63;
    *minimum = s[j + 4] & 63;
  } else {
    *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    *minimum = (s[j + 4] >> 4) | (s[j] >> 6) << 4;
  }
}

// Weights 32*g … 32*g+31 of a source row in packed codes.
void take_group(SourceFormat source, const uint8_t* row, int64_t g, uint8_t* codes, uint16_t* scale, uint16_t* bias) {
  *bias = 0;
  switch (source) {
    case SourceFormat::Q4_0: {
      const uint8_t* b = row + g * 18;
      *scale = read_half(b);
      return split_nibbles(b + 2, codes);
    }
    case SourceFormat::Q4_1: {
      const uint8_t* b = row + g * 20;
      *scale = read_half(b);
      *bias = read_half(b + 2);
      return split_nibbles(b + 4, codes);
    }
    case SourceFormat::Q5_0: {
      const uint8_t* b = row + g * 22;
      *scale = read_half(b);
      split_nibbles(b + 6, codes);
      add_fifth_bits(b + 2, codes);
      for (int j = 0; j < 32; ++j) codes[j] = static_cast<uint8_t>(codes[j] + 128 - 16);
      return;
    }
    case SourceFormat::Q5_1: {
      const uint8_t* b = row + g * 24;
      *scale = read_half(b);
      *bias = read_half(b + 2);
      split_nibbles(b + 8, codes);
      return add_fifth_bits(b + 4, codes);
    }
    case SourceFormat::Q8_0: {
      const uint8_t* b = row + g * 34;
      *scale = read_half(b);
      for (int j = 0; j < 32; ++j) codes[j] = static_cast<uint8_t>(b[2 + j] ^ 0x80);
      return;
    }
    case SourceFormat::Q4_K:
    case SourceFormat::Q5_K: {
      const bool five = source == SourceFormat::Q5_K;
      const uint8_t* b = row + g / 8 * (five ? 176 : 144);
      const int j = static_cast<int>(g % 8);
      int s = 0, m = 0;
      k_scale_min(b + 4, j, &s, &m);
      *scale = half_scale(half_to_float(read_half(b)) * static_cast<float>(s));
      *bias = half_scale(-half_to_float(read_half(b + 2)) * static_cast<float>(m));
      const uint8_t* nibbles = b + (five ? 48 : 16) + j / 2 * 32;
      for (int i = 0; i < 32; ++i) {
        codes[i] = j % 2 ? nibbles[i] >> 4 : nibbles[i] & 15;
        if (five) codes[i] = static_cast<uint8_t>(codes[i] | (b[16 + i] >> j & 1) << 4);
      }
      return;
    }
    default:
      return;
  }
}

// ---- one block ------------------------------------------------------------------------------------------------------------------

bool is_plain(SourceFormat source) {
  return source == SourceFormat::F32 || source == SourceFormat::F16 || source == SourceFormat::BF16;
}

// Weights k0 … k0+count-1 of a plain row as fp32.
void read_plain(SourceFormat source, const uint8_t* row, int64_t k0, int64_t count, float* out) {
  if (source == SourceFormat::F32) {
    memcpy(out, row + k0 * 4, static_cast<size_t>(count) * 4);
    return;
  }
  for (int64_t k = 0; k < count; ++k) {
    const uint16_t h = read_half(row + (k0 + k) * 2);
    out[k] = source == SourceFormat::F16 ? half_to_float(h) : bf16_to_float(h);
  }
}

// Where the source row of a block's column is; null for padding.
struct Columns {
  const uint8_t* rows;
  const uint8_t* up;
  int64_t row_bytes, first_block, limit;  // limit: logical columns (interleaved: of gate)
  bool interleaved;

  const uint8_t* at(int64_t block, int64_t j) const {
    const uint8_t* base = interleaved && j >= kTileColumns ? up : rows;
    const int64_t width = interleaved ? kTileColumns : kBlockColumns;
    const int64_t column = block * width + j % width;
    return column < limit ? base + (column - first_block * width) * row_bytes : nullptr;
  }
};

int64_t at_most(int64_t x, int64_t limit) { return x < limit ? x : limit; }

void pack_block_f32(const PackedWeight& w, SourceFormat source, const Columns& columns, int64_t block, uint8_t* out) {
  float buffer[64];
  for (int64_t j = 0; j < kBlockColumns; ++j) {
    const uint8_t* row = columns.at(block, j);
    for (int64_t k0 = 0; k0 < w.k; k0 += 64) {
      const int64_t count = at_most(64, w.k - k0);
      memset(buffer, 0, sizeof buffer);
      if (row != nullptr) read_plain(source, row, k0, count, buffer);
      for (int64_t k = 0; k < count; ++k) memcpy(out + ((k0 + k) * kBlockColumns + j) * 4, &buffer[k], 4);
    }
  }
}

void pack_block_bf16(const PackedWeight& w, const WeightLayout& l, SourceFormat source, const Columns& columns, int64_t block,
                     uint8_t* out) {
  float buffer[32];
  for (int64_t j = 0; j < kBlockColumns; ++j) {
    const uint8_t* row = columns.at(block, j);
    for (int64_t step = 0; step < l.steps; ++step) {
      memset(buffer, 0, sizeof buffer);
      if (row != nullptr) read_plain(source, row, step * 32, at_most(32, w.k - step * 32), buffer);
      uint8_t* tile = out + step * 2048 + j / 16 * 1024 + j % 16 * 4;
      for (int k = 0; k < 32; ++k) {
        const uint16_t h = float_to_bf16(buffer[k]);
        memcpy(tile + k / 2 * 64 + k % 2 * 2, &h, 2);
      }
    }
  }
}

// 64 codes of column j into a part of a step (8 bits: 2048 bytes, 4 bits: 1024).
void place_codes(const uint8_t* codes, int64_t j, int bits, uint8_t* part) {
  if (bits == 8) {
    uint8_t* tile = part + j / 16 * 1024 + j % 16 * 4;
    for (int row = 0; row < 16; ++row) memcpy(tile + row * 64, codes + row * 4, 4);
    return;
  }
  uint8_t* tile = part + j / 16 * 512 + j % 16 * 4;
  for (int row = 0; row < 8; ++row) {
    uint32_t low = 0, high = 0;
    memcpy(&low, codes + row * 4, 4);
    memcpy(&high, codes + 32 + row * 4, 4);
    low |= high << 4;
    memcpy(tile + row * 64, &low, 4);
  }
}

void pack_block_i8(const PackedWeight& w, const WeightLayout& l, SourceFormat source, const Columns& columns, int64_t block,
                   uint8_t* out) {
  float buffer[64];
  uint8_t codes[64];
  for (int64_t j = 0; j < kBlockColumns; ++j) {
    const uint8_t* row = columns.at(block, j);
    float amax = 0.0f;
    for (int64_t k0 = 0; row != nullptr && k0 < w.k; k0 += 64) {
      const int64_t count = at_most(64, w.k - k0);
      read_plain(source, row, k0, count, buffer);
      for (int64_t k = 0; k < count; ++k) amax = fabsf(buffer[k]) > amax ? fabsf(buffer[k]) : amax;
    }
    const float scale = amax / 127.0f;
    const float inverse = amax > 0.0f ? 127.0f / amax : 0.0f;
    for (int64_t step = 0; step < l.steps; ++step) {
      memset(codes, 128, sizeof codes);
      if (row != nullptr) {
        const int64_t count = at_most(64, w.k - step * 64);
        read_plain(source, row, step * 64, count, buffer);
        for (int64_t k = 0; k < count; ++k) codes[k] = nearest_code(buffer[k], inverse, 128, 255);
      }
      place_codes(codes, j, 8, out + step * 2048);
    }
    memcpy(out + l.steps * 2048 + j * 4, &scale, 4);
  }
}

// One column's step of a grouped format, from either kind of source.
void make_step(const PackedWeight& w, const WeightLayout& l, SourceFormat source, const uint8_t* row, int64_t step, int bits,
               ColumnStep* out) {
  memset(out, 0, sizeof *out);
  if (row == nullptr) return;
  float buffer[kMaxStepK];
  for (int64_t g = 0; g < l.groups; ++g) {
    const int64_t k0 = step * l.step_k + g * w.group;
    if (k0 >= w.k) return;
    uint8_t* codes = out->codes + g * w.group;
    if (is_plain(source)) {
      const int64_t count = at_most(w.group, w.k - k0);
      read_plain(source, row, k0, count, buffer);
      round_group(buffer, count, w.group, bits, w.asymmetric, codes, &out->scale[g], &out->bias[g]);
    } else {
      take_group(source, row, k0 / 32, codes, &out->scale[g], &out->bias[g]);
    }
  }
}

void pack_block_grouped(const PackedWeight& w, const WeightLayout& l, SourceFormat source, const Columns& columns,
                        int64_t block, uint8_t* out) {
  const int bits = w.format == WeightFormat::I4G ? 4 : 8;
  ColumnStep column;
  for (int64_t j = 0; j < kBlockColumns; ++j) {
    const uint8_t* row = columns.at(block, j);
    for (int64_t step = 0; step < l.steps; ++step) {
      make_step(w, l, source, row, step, bits, &column);
      uint8_t* place = out + step * l.step_bytes;
      for (int64_t part = 0; part < l.step_k / 64; ++part) {
        place_codes(column.codes + part * 64, j, bits, place + part * 256 * bits);
      }
      uint8_t* scales = place + l.data_bytes + j * 2;
      for (int64_t g = 0; g < l.groups; ++g) {
        memcpy(scales + g * 64, &column.scale[g], 2);
        if (w.asymmetric) memcpy(scales + (l.groups + g) * 64, &column.bias[g], 2);
      }
    }
  }
}

// One group a step: each 64 k rotated, then rounded as int8.
void pack_block_rotated(const PackedWeight& w, const WeightLayout& l, SourceFormat source, const Columns& columns,
                        int64_t block, uint8_t* out) {
  alignas(64) float buffer[kMaxStepK];
  uint8_t codes[kMaxStepK];
  for (int64_t j = 0; j < kBlockColumns; ++j) {
    const uint8_t* row = columns.at(block, j);
    for (int64_t step = 0; step < l.steps; ++step) {
      memset(buffer, 0, sizeof buffer);
      if (row != nullptr) read_plain(source, row, step * l.step_k, at_most(l.step_k, w.k - step * l.step_k), buffer);
      for (int64_t k = 0; k < l.step_k; k += kRotation) rotate_64(buffer + k);
      for (int64_t k = 0; k < l.step_k; ++k) buffer[k] *= kRotationScale;
      uint16_t scale = 0, bias = 0;
      round_group(buffer, l.step_k, l.step_k, 8, false, codes, &scale, &bias);
      uint8_t* place = out + step * l.step_bytes;
      for (int64_t part = 0; part < l.step_k / 64; ++part) place_codes(codes + part * 64, j, 8, place + part * 2048);
      memcpy(place + l.data_bytes + j * 2, &scale, 2);
    }
  }
}

// ---- back to fp32 -----------------------------------------------------------------------------------------------------------------

uint8_t code_at(const uint8_t* part, int64_t j, int bits, int64_t k) {
  if (bits == 8) return part[j / 16 * 1024 + k / 4 * 64 + j % 16 * 4 + k % 4];
  const uint8_t both = part[j / 16 * 512 + k % 32 / 4 * 64 + j % 16 * 4 + k % 4];
  return k < 32 ? both & 15 : both >> 4;
}

void unpack_grouped(const PackedWeight& w, const WeightLayout& l, const uint8_t* block, int64_t j, float* out) {
  const int bits = w.format == WeightFormat::I4G ? 4 : 8;
  const int zero = w.asymmetric ? 0 : 1 << (bits - 1);
  for (int64_t k = 0; k < w.k; ++k) {
    const uint8_t* step = block + k / l.step_k * l.step_bytes;
    const int64_t inside = k % l.step_k, g = inside / w.group;
    const uint8_t* scales = step + l.data_bytes + g * 64 + j * 2;
    const int code = code_at(step + inside / 64 * 256 * bits, j, bits, inside % 64) - zero;
    const float bias = w.asymmetric ? half_to_float(read_half(scales + l.groups * 64)) : 0.0f;
    out[k] = half_to_float(read_half(scales)) * static_cast<float>(code) + bias;
  }
}

void unpack_rotated(const PackedWeight& w, const WeightLayout& l, const uint8_t* block, int64_t j, float* out) {
  for (int64_t k0 = 0; k0 < w.k; k0 += kRotation) {
    const uint8_t* step = block + k0 / l.step_k * l.step_bytes;
    const float scale = half_to_float(read_half(step + l.data_bytes + j * 2)) * kRotationScale;
    alignas(64) float buffer[kRotation];
    const uint8_t* part = step + k0 % l.step_k / 64 * 2048;
    for (int k = 0; k < kRotation; ++k) buffer[k] = static_cast<float>(code_at(part, j, 8, k) - 128);
    rotate_64(buffer);
    for (int64_t k = 0; k < at_most(kRotation, w.k - k0); ++k) out[k0 + k] = buffer[k] * scale;
  }
}

}  // namespace

int64_t source_row_bytes(SourceFormat source, int64_t k) {
  const auto blocks = [&](int64_t size, int64_t bytes) { return k % size ? 0 : k / size * bytes; };
  switch (source) {
    case SourceFormat::F32: return k * 4;
    case SourceFormat::F16: return k * 2;
    case SourceFormat::BF16: return k * 2;
    case SourceFormat::Q4_0: return blocks(32, 18);
    case SourceFormat::Q4_1: return blocks(32, 20);
    case SourceFormat::Q5_0: return blocks(32, 22);
    case SourceFormat::Q5_1: return blocks(32, 24);
    case SourceFormat::Q8_0: return blocks(32, 34);
    case SourceFormat::Q4_K: return blocks(256, 144);
    case SourceFormat::Q5_K: return blocks(256, 176);
  }
  return 0;
}

bool can_pack(SourceFormat source, const PackedWeight& w) {
  if (source_row_bytes(source, w.k) == 0) return false;
  if (is_plain(source)) return true;
  const bool four = source == SourceFormat::Q4_0 || source == SourceFormat::Q4_1 || source == SourceFormat::Q4_K;
  const bool symmetric = source == SourceFormat::Q4_0 || source == SourceFormat::Q5_0 || source == SourceFormat::Q8_0;
  return w.format == (four ? WeightFormat::I4G : WeightFormat::I8G) && w.group == 32 && (w.asymmetric == 0) == symmetric;
}

void pack_blocks(const PackedWeight& w, SourceFormat source, const void* rows, const void* up, int64_t block0,
                 int64_t block1) {
  const WeightLayout l = weight_layout(w);
  const bool interleaved = w.interleaved != 0;
  const Columns columns{static_cast<const uint8_t*>(rows), static_cast<const uint8_t*>(up), source_row_bytes(source, w.k),
                        block0, interleaved ? w.n / 2 : w.n, interleaved};
  uint8_t* base = const_cast<uint8_t*>(static_cast<const uint8_t*>(w.base));
  for (int64_t block = block0; block < block1; ++block) {
    uint8_t* out = base + block * l.block_bytes;
    switch (w.format) {
      case WeightFormat::F32:
        pack_block_f32(w, source, columns, block, out);
        break;
      case WeightFormat::BF16:
        pack_block_bf16(w, l, source, columns, block, out);
        break;
      case WeightFormat::I8:
        pack_block_i8(w, l, source, columns, block, out);
        break;
      case WeightFormat::I8G:
      case WeightFormat::I4G:
        pack_block_grouped(w, l, source, columns, block, out);
        break;
      case WeightFormat::I8R:
        pack_block_rotated(w, l, source, columns, block, out);
        break;
    }
  }
}

void unpack_row(const PackedWeight& w, int64_t n, float* out) {
  const WeightLayout l = weight_layout(w);
  int64_t column = n;
  if (w.interleaved) {
    const int64_t gates = w.n / 2, i = n < gates ? n : n - gates;
    column = i / 16 * 32 + i % 16 + (n < gates ? 0 : 16);
  }
  const uint8_t* block = static_cast<const uint8_t*>(w.base) + column / kBlockColumns * l.block_bytes;
  const int64_t j = column % kBlockColumns;
  switch (w.format) {
    case WeightFormat::F32:
      for (int64_t k = 0; k < w.k; ++k) memcpy(&out[k], block + (k * kBlockColumns + j) * 4, 4);
      break;
    case WeightFormat::BF16:
      for (int64_t k = 0; k < w.k; ++k) {
        out[k] = bf16_to_float(read_half(block + k / 32 * 2048 + j / 16 * 1024 + k % 32 / 2 * 64 + j % 16 * 4 + k % 2 * 2));
      }
      break;
    case WeightFormat::I8: {
      float scale;
      memcpy(&scale, block + l.steps * 2048 + j * 4, 4);
      for (int64_t k = 0; k < w.k; ++k) out[k] = scale * static_cast<float>(code_at(block + k / 64 * 2048, j, 8, k % 64) - 128);
      break;
    }
    case WeightFormat::I8G:
    case WeightFormat::I4G:
      unpack_grouped(w, l, block, j, out);
      break;
    case WeightFormat::I8R:
      unpack_rotated(w, l, block, j, out);
      break;
  }
}

}  // namespace headrace
