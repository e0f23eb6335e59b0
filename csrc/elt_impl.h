// Row-wise kernels: RMS norm, head norm + rotation + KV write, logit scans. Included once per ISA.
//
// Sums run in a fixed order that depends on the row's length alone.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace headrace {
namespace HR_ISA {

HR_INLINE float inverse_rms(const float* x, float eps, int64_t n) {
  vf a = {}, b = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const vf u = load(x + i), v = load(x + i + kLanes);
    a = a + u * u;
    b = b + v * v;
  }
  float sum = hsum(a + b);
  for (; i < n; ++i) sum += x[i] * x[i];
  return 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
}

static void rms_norm(const float* x, const float* weight, float eps, int64_t n, bool add, float* out) {
  const float inverse = inverse_rms(x, eps, n);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    vf y = load(x + i) * inverse * load(weight + i);
    if (add) y = load(out + i) + y;
    store(out + i, y);
  }
  for (; i < n; ++i) {
    const float y = x[i] * inverse * weight[i];
    out[i] = add ? out[i] + y : y;
  }
}

static void scale(float* y, int64_t n, float factor) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(y + i) * factor);
  for (; i < n; ++i) y[i] *= factor;
}

static void rotate(const float* x, const float* cos, const float* sin, int64_t half, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const vf a = load(x + i), b = load(x + i + half), c = load(cos + i), s = load(sin + i);
    store(out + i, a * c - b * s);
    store(out + i + half, b * c + a * s);
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    out[i] = a * cos[i] - b * sin[i];
    out[i + half] = b * cos[i] + a * sin[i];
  }
}

static void write_key_bf16(const float* x, const KvLayer& kv, const KvSlot& slot, char* base) {
  uint16_t row[kMaxHeadDim];
  const int64_t n = kv.head_dim;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_bf16(row + i, load(x + i));
  for (; i < n; ++i) row[i] = to_bf16(x[i]);
  for (; i < kv.dim; ++i) row[i] = 0;
  uint16_t* to = reinterpret_cast<uint16_t*>(base) + slot.offset / 16 * 16 * kv.dim + slot.offset % 16 * 2;
  for (int64_t p = 0; p < kv.dim / 2; ++p) memcpy(to + p * 32, row + p * 2, 4);
}

static void write_value_bf16(const float* x, const KvLayer& kv, const KvSlot& slot, char* base) {
  uint16_t* block = reinterpret_cast<uint16_t*>(base);
  uint16_t* to = block + static_cast<int64_t>(slot.offset / 2) * 2 * kv.dim + slot.offset % 2;
  int64_t d = 0;
#if HR_LANES == 16 && defined(__AVX512BW__)
  // Every other number of a line: a masked store leaves the other token's alone, which another thread may be writing.
  for (uint16_t* pairs = to - slot.offset % 2; d + kLanes <= kv.head_dim; d += kLanes) {
    const __m512i bits = reinterpret_cast<__m512i>(bf16_bits(load(x + d)));
    const int odd = slot.offset % 2;
    _mm512_mask_storeu_epi16(pairs + d * 2, odd ? 0xAAAAAAAAu : 0x55555555u, odd ? _mm512_slli_epi32(bits, 16) : bits);
  }
#endif
  for (; d < kv.head_dim; ++d) to[d * 2] = to_bf16(x[d]);
  if (!slot.clears_tail) return;
  int64_t next = slot.offset + 1;
  if (next % 2) {
    for (int64_t d = 0; d < kv.dim; ++d) to[d * 2 + 1] = 0;
    ++next;
  }
  memset(block + next * kv.dim, 0, static_cast<size_t>((kv.block_size - next) * kv.dim) * 2);
}

// A head's channels as int8 multiples of the bf16 scale that is returned, padded with zeros.
static uint16_t quantize_s8(const float* x, int64_t n, int64_t dim, int8_t* out) {
  const float largest = largest_or_nan(x, n);
  uint16_t scale_bits = 0;
  float inverse = 0.0f;
  if (largest != largest) {
    scale_bits = 0x7FC0;
  } else if (largest > 1e-30f) {
    const float exact = largest / 127.0f;
    uint32_t bits;
    memcpy(&bits, &exact, 4);
    bits = (bits + 0xFFFFu) & 0xFFFF0000u;  // up, so that no channel passes 127
    float scale;
    memcpy(&scale, &bits, 4);
    scale_bits = static_cast<uint16_t>(bits >> 16);
    inverse = 1.0f / scale;
  }
  int64_t d = 0;
  for (; d + kLanes <= n; d += kLanes) store_s8(out + d, nearest(load(x + d) * inverse));
  for (; d < n; ++d) out[d] = static_cast<int8_t>(nearest(splat(x[d] * inverse))[0]);
  for (; d < dim; ++d) out[d] = 0;
  return scale_bits;
}

static void write_key_int8(const float* x, const KvLayer& kv, const KvSlot& slot, char* base) {
  int8_t row[kMaxHeadDim];
  float spread[kMaxHeadDim];
  memcpy(spread, x, static_cast<size_t>(kv.head_dim) * 4);
  for (int64_t d = kv.head_dim; d < kv.dim; ++d) spread[d] = 0.0f;
  hadamard(spread, kv.dim, hadamard_block(kv.head_dim));
  uint16_t* scales = reinterpret_cast<uint16_t*>(base + static_cast<int64_t>(kv.block_size) * kv.dim);
  scales[slot.offset] = quantize_s8(spread, kv.head_dim, kv.dim, row);
  char* to = base + slot.offset / 16 * 16 * kv.dim + slot.offset % 16 * 2;
  for (int64_t p = 0; p < kv.dim / 2; ++p) memcpy(to + p * 32, row + p * 2, 2);
}

static void write_value_int8(const float* x, const KvLayer& kv, const KvSlot& slot, char* base) {
  int8_t row[kMaxHeadDim];
  uint16_t* scales = reinterpret_cast<uint16_t*>(base + static_cast<int64_t>(kv.block_size) * kv.dim);
  scales[slot.offset] = quantize_s8(x, kv.head_dim, kv.dim, row);
  char* to = base + static_cast<int64_t>(slot.offset / 2) * 2 * kv.dim + slot.offset % 2;
  int64_t d = 0;
#if HR_LANES == 16 && defined(__AVX512BW__)
  for (char* pairs = to - slot.offset % 2; d + 32 <= kv.dim; d += 32) {  // see write_value_bf16
    const __m512i codes = reinterpret_cast<__m512i>(widen_pairs(reinterpret_cast<const char*>(row + d)));
    const bool odd = slot.offset % 2;
    _mm512_mask_storeu_epi8(pairs + d * 2, odd ? 0xAAAAAAAAAAAAAAAAu : 0x5555555555555555u,
                            odd ? _mm512_slli_epi16(codes, 8) : codes);
  }
#endif
  for (; d < kv.dim; ++d) to[d * 2] = static_cast<char>(row[d]);
  if (!slot.clears_tail) return;
  memset(scales + slot.offset + 1, 0, static_cast<size_t>(kv.block_size - slot.offset - 1) * 2);
}

static void write_key(const float* x, const KvLayer& kv, const KvSlot& slot, char* base) {
  kv.type == KvType::Int8 ? write_key_int8(x, kv, slot, base) : write_key_bf16(x, kv, slot, base);
}

static void write_value(const float* x, const KvLayer& kv, const KvSlot& slot, char* base) {
  kv.type == KvType::Int8 ? write_value_int8(x, kv, slot, base) : write_value_bf16(x, kv, slot, base);
}

static void qk_write(const QkWriteArgs& args, int64_t token, int32_t head0, int32_t head1) {
  const KvLayer& kv = *args.kv;
  const int64_t dim = kv.head_dim;
  const KvSlot& slot = args.slots[token];
  const float* cos = args.cos ? args.cos + token * args.half : nullptr;
  const float* sin = args.sin ? args.sin + token * args.half : nullptr;
  float normed[kMaxHeadDim], turned[kMaxHeadDim];
  for (int32_t head = head0; head < head1; ++head) {
    const float* x = args.src + token * args.ld_src + head * dim;
    const int32_t kv_head = head - args.num_heads;
    if (kv_head >= kv.kv_heads) {
      const int64_t at = slot.block * kv.block_stride + (kv_head - kv.kv_heads) * kv.head_stride;
      write_value(x, kv, slot, kv.v + at);
      continue;
    }
    const float* weight = kv_head < 0 ? args.q_norm : args.k_norm;
    if (weight) {
      rms_norm(x, weight, args.eps, dim, false, normed);
      x = normed;
    }
    float* out = kv_head < 0 ? args.dst + token * args.ld_dst + head * dim : turned;
    int64_t done = 0;
    if (cos) {
      rotate(x, cos, sin, args.half, out);
      done = 2 * args.half;
    }
    memcpy(out + done, x + done, static_cast<size_t>(dim - done) * 4);
    if (kv_head >= 0) write_key(out, kv, slot, kv.k + slot.block * kv.block_stride + kv_head * kv.head_stride);
  }
}

static void finish_logits(float* y, int64_t n, float factor, float cap) {
  int64_t i = 0;
  if (cap > 0.0f) {
    for (; i + kLanes <= n; i += kLanes) store(y + i, tanhv(load(y + i) * (factor / cap)) * cap);
    for (; i < n; ++i) y[i] = tanhv(splat(y[i] * (factor / cap)))[0] * cap;
  } else if (factor != 1.0f) {
    scale(y, n, factor);
  }
}

static LogitScan scan_logits(const float* y, int64_t n) {
  const float inf = __builtin_inff();
  vf best = splat(-inf);
  vi best_at = {}, bad = {};
  vi at = iota();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const vf x = load(y + i);
    const vi better = x > best;
    best = better ? x : best;
    best_at = better ? at : best_at;
    bad -= ~(x < inf);
    at += kLanes;
  }
  LogitScan scan = {-inf, 0, 0};
  bool any = false;
  for (int j = 0; j < kLanes && i > 0; ++j) {
    scan.num_bad += bad[j];
    if (!any || best[j] > scan.best || (best[j] == scan.best && best_at[j] < scan.best_id)) {
      scan.best = best[j];
      scan.best_id = best_at[j];
      any = true;
    }
  }
  for (; i < n; ++i) {
    scan.num_bad += !(y[i] < inf);
    if (!any || y[i] > scan.best) scan.best = y[i], scan.best_id = static_cast<int32_t>(i), any = true;
  }
  return scan;
}

static double sum_exp(const float* y, int64_t n, float best, float inverse_temperature) {
  double total = 0.0;
  int64_t i = 0;
  while (i + kLanes <= n) {
    vf part = {};
    const int64_t stop = i + 64 * kLanes <= n ? i + 64 * kLanes : n / kLanes * kLanes;
    for (; i < stop; i += kLanes) part = part + expv((load(y + i) - best) * inverse_temperature);
    total += hsum(part);
  }
  for (; i < n; ++i) total += expv(splat((y[i] - best) * inverse_temperature))[0];
  return total;
}

static int64_t collect_ge(const float* y, int64_t n, float threshold, int32_t* out, int64_t capacity) {
  int64_t found = 0, i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const vi hit = load(y + i) >= threshold;
    int32_t any = 0;
#if HR_LANES == 16 && defined(__AVX512F__)
    any = _mm512_test_epi32_mask(reinterpret_cast<__m512i>(hit), reinterpret_cast<__m512i>(hit));
#else
    for (int j = 0; j < kLanes; ++j) any |= hit[j];
#endif
    if (!any) continue;
    for (int j = 0; j < kLanes; ++j) {
      if (!hit[j]) continue;
      if (found < capacity) out[found] = static_cast<int32_t>(i + j);
      ++found;
    }
  }
  for (; i < n; ++i) {
    if (!(y[i] >= threshold)) continue;
    if (found < capacity) out[found] = static_cast<int32_t>(i);
    ++found;
  }
  return found;
}

}  // namespace HR_ISA
}  // namespace headrace
