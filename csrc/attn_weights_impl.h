// From a tile's scores to the weights of its values: scale, cap, mask, softmax to base 2. Included once per ISA.
//
// A row's numbers depend on the tile's positions and the row's own window only, not on the rows beside it nor on how many
// pieces of the tile there are behind the last that it sees.
#pragma once
#include "attn_rows_impl.h"

namespace headrace {
namespace HR_ISA {

// Scores of one row, capped and masked, so that `unit` times one is its logarithm to base 2; returns their maximum in that
// sense, at least m. `factor` turns q . k into a score, times the tokens' K scales if there are any (int8: then `s` holds int32).
template <class Kv>
HR_INLINE float mask_scores(const AttentionArgs& args, const Tile& tile, float factor, float* s, int64_t low, int64_t pos,
                            float m, float* unit) {
  const int count = tile.pieces * 16;
  const int64_t base = tile.base;
  for (int i = 0; Kv::kBytes == 1 && i < count; i += kLanes) {
    const vi sum = *reinterpret_cast<const vi*>(s + i);
    store(s + i, __builtin_convertvector(sum, vf) * load(tile.k_scales + i));
  }
  *unit = factor * kLog2e;
  if (args.softcap > 0.0f) {
    const float scale = factor / args.softcap;
    for (int i = 0; i < count; i += kLanes) store(s + i, tanhv(load(s + i) * scale) * (args.softcap * kLog2e));
    *unit = 1.0f;
  }
  if (base + count - 1 > pos || base < low) {
    const vi lanes = iota();
    for (int i = 0; i < count; i += kLanes) {
      const vi at = lanes + static_cast<int32_t>(base + i - pos);  // relative position, 0 is the token itself
      const vi seen = (at <= 0) & (at >= static_cast<int32_t>(low - pos));
      store(s + i, select(seen, load(s + i), splat(-__builtin_inff())));
    }
  }
  vf top = splat(-__builtin_inff());
  for (int i = 0; i < count; i += kLanes) top = vmax(top, load(s + i));
  const float largest = hmax(top) * *unit;
  return m > largest ? m : largest;  // NaN: its weights become NaN
}

// Weights of one row, rounded to bf16; adds the rounded ones to `sum`, lane by lane.
HR_INLINE void weigh_bf16(const float* s, int count, float unit, float m, uint16_t* p, float* sum) {
  vf total = load(sum);
  int i = 0;
#if HR_LANES == 16 && defined(__AVX512BF16__)
  const __m512i ones = _mm512_set1_epi32(0x3F803F80);  // pairs of bf16 1
  __m512bh unit_pairs;
  memcpy(&unit_pairs, &ones, 64);
  for (; i + 32 <= count; i += 32) {
    const vf w0 = exp2_short(load(s + i) * unit - m), w1 = exp2_short(load(s + i + 16) * unit - m);
    const __m512bh both = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(w1), reinterpret_cast<__m512>(w0));
    memcpy(p + i, &both, 64);
    total = reinterpret_cast<vf>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(total), both, unit_pairs));
  }
  if (i < count) {  // as if 16 zeros followed: how far a tile reaches does not show in a sum
    const __m256bh half = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(exp2_short(load(s + i) * unit - m)));
    __m512i wide = {};
    memcpy(p + i, &half, 32);
    memcpy(&wide, &half, 32);
    __m512bh both;
    memcpy(&both, &wide, 64);
    total = reinterpret_cast<vf>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(total), both, unit_pairs));
  }
#else
  for (; i < count; i += kLanes) {
    store_bf16(p + i, exp2_short(load(s + i) * unit - m));
    total = total + load_bf16(p + i);
  }
#endif
  store(sum, total);
}

// Weights of one row times the V scales, as s16 multiples of the factor that is returned; adds the weights alone to `sum`,
// lane by lane.
HR_INLINE float weigh_int8(const Tile& tile, float* s, float unit, float m, uint16_t* p, float* sum) {
  const int count = tile.pieces * 16;
  vf total = load(sum), top = {};
  for (int i = 0; i < count; i += kLanes) {
    const vf weight = exp2_short(load(s + i) * unit - m), scaled = weight * load(tile.v_scales + i);
    total = total + weight;
    top = vmax(scaled, top);
    store(s + i, scaled);
  }
  store(sum, total);
  const float largest = hmax(top);
  const bool counts = largest > 1e-30f;
  const float factor = counts ? 32767.0f / largest : 0.0f;
  for (int i = 0; i < count; i += kLanes) store_s16(p + i, nearest(load(s + i) * factor));
  return counts ? largest / 32767.0f : 0.0f;
}

// One tile's scores of a row block and what becomes of them, in the first cache.
struct RowBlock {
  alignas(64) float s[kRowBlock * kKvTile];
  alignas(64) uint16_t p[kRowBlock * kKvTile];
  alignas(64) float alpha[16] = {};
  float unit[16];

  RowBlock() {}  // the rest is written before it is read
};

// Scores of the rows first … first+rows-1 to weights: updates m and the sums; alpha is the factor for what was summed before.
template <class Kv>
static void soften(const AttentionArgs& args, const AttentionItem& item, const Tile& tile, bool sinks, const Scratch& scratch,
                   int first, int rows, RowBlock& block) {
  float* m = scratch.chunk.m + first;
  for (int r = 0; r < rows; ++r) {
    const int64_t pos = scratch.pos[first + r];
    const int64_t low = item.window > 0 && !sinks ? pos - item.window + 1 : 0;
    const float m_new = mask_scores<Kv>(args, tile, scratch.factor[first + r], block.s + r * kKvTile, low, pos, m[r], block.unit + r);
    block.alpha[r] = m[r] - m_new;
    m[r] = m_new;
  }
  for (int r = 0; r < rows; r += kLanes) store(block.alpha + r, exp2v(load(block.alpha + r)));
  for (int r = 0; r < rows; ++r) {
    float *s = block.s + r * kKvTile, *sum = scratch.sums + (first + r) * kLanes;
    uint16_t* p = block.p + r * kKvTile;
    store(sum, load(sum) * block.alpha[r]);
    if (Kv::kBytes == 1) {
      block.unit[r] = weigh_int8(tile, s, block.unit[r], m[r], p, sum);
    } else {
      weigh_bf16(s, tile.pieces * 16, block.unit[r], m[r], p, sum);
    }
  }
}

}  // namespace HR_ISA
}  // namespace headrace
