// Paged attention for decode, prefill and mixed steps: one loop, included once per ISA.
//
// Online softmax over tiles of kKvTile positions that are aligned to absolute positions. For one (token, head) the sequence
// of operations on every element depends on its position and window only: never on which other rows share the item, so
// decode, any chunking of a prompt and any number of threads give the same bits. A tile that a row cannot see leaves its
// m, l and O unchanged exactly (weight 0, factor 1).
// Products are bf16 x bf16 summed in fp32; the weights are rounded to bf16 and l sums the rounded weights.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace headrace {
namespace HR_ISA {

// Sixteen lanes, whatever the register width.
constexpr int kParts = 16 / kLanes;
struct Acc16 {
  vf part[kParts];
};
struct Pairs16 {
  vu part[kParts];
};

HR_INLINE Pairs16 load_pairs16(const uint16_t* p) {
  Pairs16 b;
  for (int i = 0; i < kParts; ++i) b.part[i] = load_pairs(p + i * 2 * kLanes);
  return b;
}

// acc += a.lo * b.lo + a.hi * b.hi in every lane; `a` is two bf16.
HR_INLINE void dot_pairs(Acc16& acc, uint32_t a, const Pairs16& b) {
#if HR_LANES == 16 && defined(__AVX512BF16__)
  __m512bh x, y;
  __m512i av = _mm512_set1_epi32(static_cast<int>(a));
  memcpy(&x, &av, 64);
  memcpy(&y, &b.part[0], 64);
  acc.part[0] = reinterpret_cast<vf>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(acc.part[0]), x, y));
#else
  uint32_t lo_bits = a << 16, hi_bits = a & 0xFFFF0000u;
  float lo, hi;
  memcpy(&lo, &lo_bits, 4);
  memcpy(&hi, &hi_bits, 4);
  for (int i = 0; i < kParts; ++i) {
    acc.part[i] = acc.part[i] + low_half(b.part[i]) * lo;
    acc.part[i] = acc.part[i] + high_half(b.part[i]) * hi;
  }
#endif
}

#if HR_LANES == 16
constexpr int kRowBlock = 6, kColBlock = 4;
#else
constexpr int kRowBlock = 4, kColBlock = 1;
#endif

// Where the 16-token pieces of one KV tile are.
struct Tile {
  const uint16_t* k[kKvTile / 16];
  const uint16_t* v[kKvTile / 16];
  int pieces;
};

// s[r][c*16 + lane] = q[r] . k for R rows and C pieces from `piece`.
template <int R, int C>
static void score_block(const uint32_t* q, int64_t pairs, const Tile& tile, int piece, float* s) {
  Acc16 acc[R][C] = {};
  for (int64_t p = 0; p < pairs; ++p) {
    Pairs16 b[C];
    for (int c = 0; c < C; ++c) b[c] = load_pairs16(tile.k[piece + c] + p * 32);
    for (int r = 0; r < R; ++r) {
      const uint32_t a = q[r * pairs + p];
      for (int c = 0; c < C; ++c) dot_pairs(acc[r][c], a, b[c]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c)
      for (int i = 0; i < kParts; ++i) store(s + r * kKvTile + (piece + c) * 16 + i * kLanes, acc[r][c].part[i]);
}

template <int R>
static void score_rows(const uint32_t* q, int64_t pairs, const Tile& tile, float* s) {
  int piece = 0;
  for (; piece + kColBlock <= tile.pieces; piece += kColBlock) score_block<R, kColBlock>(q, pairs, tile, piece, s);
#if HR_LANES == 16
  switch (tile.pieces - piece) {
    case 3: return score_block<R, 3>(q, pairs, tile, piece, s);
    case 2: return score_block<R, 2>(q, pairs, tile, piece, s);
    case 1: return score_block<R, 1>(q, pairs, tile, piece, s);
    default: return;
  }
#endif
}

// o[r][d0 + c*16 + lane] = o * alpha[r] + p[r] . v for R rows and C groups of 16 channels from d0.
template <int R, int C>
static void value_block(const uint32_t* p, const float* alpha, const Tile& tile, int64_t dim, int64_t d0, float* o) {
  Acc16 acc[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c)
      for (int i = 0; i < kParts; ++i) acc[r][c].part[i] = load(o + r * dim + d0 + c * 16 + i * kLanes) * alpha[r];
  for (int piece = 0; piece < tile.pieces; ++piece) {
    const uint16_t* v = tile.v[piece] + d0 * 2;
    for (int t = 0; t < 8; ++t, v += dim * 2) {
      Pairs16 b[C];
      for (int c = 0; c < C; ++c) b[c] = load_pairs16(v + c * 32);
      for (int r = 0; r < R; ++r) {
        const uint32_t a = p[r * (kKvTile / 2) + piece * 8 + t];
        for (int c = 0; c < C; ++c) dot_pairs(acc[r][c], a, b[c]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c)
      for (int i = 0; i < kParts; ++i) store(o + r * dim + d0 + c * 16 + i * kLanes, acc[r][c].part[i]);
}

template <int R>
static void value_rows(const uint32_t* p, const float* alpha, const Tile& tile, int64_t dim, float* o) {
  int64_t d = 0;
  for (; d + 16 * kColBlock <= dim; d += 16 * kColBlock) value_block<R, kColBlock>(p, alpha, tile, dim, d, o);
#if HR_LANES == 16
  switch ((dim - d) / 16) {
    case 3: return value_block<R, 3>(p, alpha, tile, dim, d, o);
    case 2: return value_block<R, 2>(p, alpha, tile, dim, d, o);
    case 1: return value_block<R, 1>(p, alpha, tile, dim, d, o);
    default: return;
  }
#endif
}

// Scores to weights for one row: updates m and l, writes bf16 weights, returns the factor for what was summed before.
static float soften(const AttentionArgs& args, float* s, int count, int64_t base, int64_t pos, uint16_t* p, float& m,
                    float& l) {
  const float to_log2 = kLog2e;
  const int64_t low = args.window > 0 ? pos - args.window + 1 : 0;
  const bool masks = base + count - 1 > pos || base < low;
  const vi lanes = iota();
  vf top = splat(m);
  for (int i = 0; i < count; i += kLanes) {
    vf x = load(s + i);
    if (args.softcap > 0.0f) {
      x = tanhv(x * (args.scale / args.softcap)) * (args.softcap * to_log2);
    } else {
      x = x * (args.scale * to_log2);
    }
    if (masks) {
      const vi at = lanes + static_cast<int32_t>(base + i - pos);  // relative position, 0 is the token itself
      const vi seen = (at <= 0) & (at >= static_cast<int32_t>(low - pos));
      x = select(seen, x, splat(-__builtin_inff()));
    }
    store(s + i, x);
    top = vmax(top, x);
  }
  const float m_new = hmax(top);
  vf sum = {};
  for (int i = 0; i < count; i += kLanes) {
    vf e = exp2v(load(s + i) - m_new);
    store_bf16(p + i, e);
    vu bits = __builtin_convertvector(*reinterpret_cast<const vh_any*>(p + i), vu);
    sum = sum + reinterpret_cast<vf>(bits << 16);
  }
  const float alpha = exp2v(splat(m - m_new))[0];
  l = l * alpha + hsum(sum);
  m = m_new;
  return alpha;
}

static void pack_queries(const AttentionArgs& args, const AttentionItem& item, int64_t dim, uint16_t* out) {
  const int64_t head_dim = args.kv->head_dim;
  for (int32_t pair = item.first; pair < item.last; ++pair, out += dim) {
    const int64_t head = static_cast<int64_t>(item.kv_head) * args.group + pair % args.group;
    const float* q = args.q + (item.token0 + pair / args.group) * args.ldq + head * head_dim;
    int64_t d = 0;
    for (; d + kLanes <= head_dim; d += kLanes) store_bf16(out + d, load(q + d));
    for (; d < head_dim; ++d) out[d] = to_bf16(q[d]);
    for (; d < dim; ++d) out[d] = 0;
  }
}

static void attention(const AttentionArgs& args, const AttentionItem& item, void* scratch) {
  const KvLayer& kv = *args.kv;
  const int64_t dim = kv.dim, pairs = dim / 2;
  const int rows = item.last - item.first;
  char* at = static_cast<char*>(scratch);
  float* o = reinterpret_cast<float*>(at);
  at += kMaxItemRows * dim * 4;
  float* s = reinterpret_cast<float*>(at);
  at += kMaxItemRows * kKvTile * 4;
  uint16_t* q = reinterpret_cast<uint16_t*>(at);
  at += kMaxItemRows * dim * 2;
  uint16_t* p = reinterpret_cast<uint16_t*>(at);
  at += kMaxItemRows * kKvTile * 2;
  float* m = reinterpret_cast<float*>(at);
  float* l = m + kMaxItemRows;
  float* alpha = l + kMaxItemRows;

  pack_queries(args, item, dim, q);
  memset(o, 0, static_cast<size_t>(rows * dim) * 4);
  for (int r = 0; r < rows; ++r) m[r] = -1e30f, l[r] = 0.0f;

  const int64_t pos_first = item.pos0 + item.first / args.group;
  const int64_t pos_last = item.pos0 + (item.last - 1) / args.group;
  const int64_t low = args.window > 0 && pos_first >= args.window ? pos_first - args.window + 1 : 0;
  const uint32_t* q32 = reinterpret_cast<const uint32_t*>(q);
  const uint32_t* p32 = reinterpret_cast<const uint32_t*>(p);
  for (int64_t base = low / kKvTile * kKvTile; base <= pos_last; base += kKvTile) {
    Tile tile;
    const int64_t pieces = (pos_last - base) / 16 + 1;
    tile.pieces = pieces < kKvTile / 16 ? static_cast<int>(pieces) : kKvTile / 16;
    for (int i = 0; i < tile.pieces; ++i) {
      const int64_t token = base + i * 16;
      const int64_t offset =
          item.blocks[token / kv.block_size] * kv.block_stride + item.kv_head * kv.head_stride + token % kv.block_size * dim;
      tile.k[i] = kv.k + offset;
      tile.v[i] = kv.v + offset;
    }
    const int count = tile.pieces * 16;
    for (int r = 0; r < rows; r += kRowBlock) {
      const uint32_t* qr = q32 + r * pairs;
      float* sr = s + r * kKvTile;
      switch (rows - r) {
        case 1: score_rows<1>(qr, pairs, tile, sr); break;
        case 2: score_rows<2>(qr, pairs, tile, sr); break;
        case 3: score_rows<3>(qr, pairs, tile, sr); break;
#if HR_LANES == 16
        case 4: score_rows<4>(qr, pairs, tile, sr); break;
        case 5: score_rows<5>(qr, pairs, tile, sr); break;
#endif
        default: score_rows<kRowBlock>(qr, pairs, tile, sr);
      }
    }
    for (int r = 0; r < rows; ++r) {
      const int64_t pos = item.pos0 + (item.first + r) / args.group;
      alpha[r] = soften(args, s + r * kKvTile, count, base, pos, p + r * kKvTile, m[r], l[r]);
    }
    for (int r = 0; r < rows; r += kRowBlock) {
      const uint32_t* pr = p32 + r * (kKvTile / 2);
      float* orow = o + r * dim;
      switch (rows - r) {
        case 1: value_rows<1>(pr, alpha + r, tile, dim, orow); break;
        case 2: value_rows<2>(pr, alpha + r, tile, dim, orow); break;
        case 3: value_rows<3>(pr, alpha + r, tile, dim, orow); break;
#if HR_LANES == 16
        case 4: value_rows<4>(pr, alpha + r, tile, dim, orow); break;
        case 5: value_rows<5>(pr, alpha + r, tile, dim, orow); break;
#endif
        default: value_rows<kRowBlock>(pr, alpha + r, tile, dim, orow);
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    const int32_t pair = item.first + r;
    const int64_t head = static_cast<int64_t>(item.kv_head) * args.group + pair % args.group;
    float* out = args.out + (item.token0 + pair / args.group) * args.ldo + head * kv.head_dim;
    const float inverse = 1.0f / l[r];
    for (int64_t d = 0; d < kv.head_dim; ++d) out[d] = o[r * dim + d] * inverse;
  }
}

}  // namespace HR_ISA
}  // namespace headrace
