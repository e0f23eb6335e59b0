// Paged attention for decode, prefill and mixed steps: one loop, included once per ISA.
//
// Online softmax over tiles of kKvTile positions, apart for each chunk of kKvChunk positions; chunks are merged in order.
// Tiles and chunks are aligned to absolute positions, so for one (token, head) the sequence of operations on every element
// depends on its position and window only: never on which rows share the item or which thread took a chunk. Decode, any
// cutting of a prompt and any number of threads give the same bits. What a row cannot see leaves its m, l and O unchanged
// exactly (weight 0, factor 1).
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

// Where the 16-token pieces of one KV tile are, and the K of the tile after it, to be fetched meanwhile (null: not).
struct Tile {
  const uint16_t* k[kKvTile / 16];
  const uint16_t* v[kKvTile / 16];
  const uint16_t* next_k[kKvTile / 16];
  int pieces;
};

// Decode reads each K and V once, from memory, in pieces too short for the hardware's prefetcher: scores fetch the V of
// their tile, values the K of the next. kFetch is off where several row blocks share a tile that is in the cache by then.
HR_INLINE void fetch(const void* p) { __builtin_prefetch(p, 0, 3); }

// s[r][c*16 + lane] = q[r] . k for R rows and C pieces from `piece`.
template <int R, int C, bool kFetch>
static void score_block(const uint32_t* q, int64_t pairs, const Tile& tile, int piece, float* s) {
  Acc16 acc[R][C] = {};
  for (int64_t p = 0; p < pairs; ++p) {
    Pairs16 b[C];
    for (int c = 0; c < C; ++c) {
      b[c] = load_pairs16(tile.k[piece + c] + p * 32);
      if (kFetch) fetch(tile.v[piece + c] + p * 32);
    }
    for (int r = 0; r < R; ++r) {
      const uint32_t a = q[r * pairs + p];
      for (int c = 0; c < C; ++c) dot_pairs(acc[r][c], a, b[c]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c)
      for (int i = 0; i < kParts; ++i) store(s + r * kKvTile + (piece + c) * 16 + i * kLanes, acc[r][c].part[i]);
}

template <int R, bool kFetch>
static void score_rows(const uint32_t* q, int64_t pairs, const Tile& tile, float* s) {
  int piece = 0;
  for (; piece + kColBlock <= tile.pieces; piece += kColBlock) score_block<R, kColBlock, kFetch>(q, pairs, tile, piece, s);
#if HR_LANES == 16
  switch (tile.pieces - piece) {
    case 3: return score_block<R, 3, kFetch>(q, pairs, tile, piece, s);
    case 2: return score_block<R, 2, kFetch>(q, pairs, tile, piece, s);
    case 1: return score_block<R, 1, kFetch>(q, pairs, tile, piece, s);
    default: return;
  }
#endif
}

// o[r][d0 + c*16 + lane] = o * alpha[r] + p[r] . v for R rows and C groups of 16 channels from d0.
template <int R, int C, bool kFetch>
static void value_block(const uint32_t* p, const float* alpha, const Tile& tile, int64_t dim, int64_t d0, float* o) {
  Acc16 acc[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c)
      for (int i = 0; i < kParts; ++i) acc[r][c].part[i] = load(o + r * dim + d0 + c * 16 + i * kLanes) * alpha[r];
  for (int piece = 0; piece < tile.pieces; ++piece) {
    const uint16_t* v = tile.v[piece] + d0 * 2;
    const uint16_t* next = kFetch ? tile.next_k[piece] : nullptr;
    for (int t = 0; t < 8; ++t, v += dim * 2) {
      Pairs16 b[C];
      for (int c = 0; c < C; ++c) {
        b[c] = load_pairs16(v + c * 32);
        if (kFetch && next) fetch(next + d0 * 16 + (t * C + c) * 32);
      }
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

template <int R, bool kFetch>
static void value_rows(const uint32_t* p, const float* alpha, const Tile& tile, int64_t dim, float* o) {
  int64_t d = 0;
  for (; d + 16 * kColBlock <= dim; d += 16 * kColBlock) value_block<R, kColBlock, kFetch>(p, alpha, tile, dim, d, o);
#if HR_LANES == 16
  switch ((dim - d) / 16) {
    case 3: return value_block<R, 3, kFetch>(p, alpha, tile, dim, d, o);
    case 2: return value_block<R, 2, kFetch>(p, alpha, tile, dim, d, o);
    case 1: return value_block<R, 1, kFetch>(p, alpha, tile, dim, d, o);
    default: return;
  }
#endif
}

// Scores of one row to base 2, capped and masked; returns the new maximum.
static float mask_scores(const AttentionArgs& args, float* s, int count, int64_t base, int64_t pos, float m) {
  const int64_t low = args.window > 0 ? pos - args.window + 1 : 0;
  vf top = splat(m);
  if (args.softcap > 0.0f) {
    for (int i = 0; i < count; i += kLanes)
      store(s + i, tanhv(load(s + i) * (args.scale / args.softcap)) * (args.softcap * kLog2e));
  } else {
    for (int i = 0; i < count; i += kLanes) store(s + i, load(s + i) * (args.scale * kLog2e));
  }
  if (base + count - 1 > pos || base < low) {
    const vi lanes = iota();
    for (int i = 0; i < count; i += kLanes) {
      const vi at = lanes + static_cast<int32_t>(base + i - pos);  // relative position, 0 is the token itself
      const vi seen = (at <= 0) & (at >= static_cast<int32_t>(low - pos));
      store(s + i, select(seen, load(s + i), splat(-__builtin_inff())));
    }
  }
  for (int i = 0; i < count; i += kLanes) top = vmax(top, load(s + i));
  return hmax(top);
}

// Weights of one row, rounded to bf16; returns the sum of the rounded ones.
static float weigh(const float* s, int count, float m, uint16_t* p) {
  vf sum = {};
  for (int i = 0; i < count; i += kLanes) {
    store_bf16(p + i, exp2v(load(s + i) - m));
    vu bits = __builtin_convertvector(*reinterpret_cast<const vh_any*>(p + i), vu);
    sum = sum + reinterpret_cast<vf>(bits << 16);
  }
  return hsum(sum);
}

// Scores of all rows to weights: updates m and l; alpha is the factor for what each row summed before.
static void soften(const AttentionArgs& args, const AttentionItem& item, int64_t base, int count, float* s, uint16_t* p,
                   float* m, float* l, float* alpha) {
  const int rows = item.last - item.first;
  for (int r = 0; r < rows; ++r) {
    const int64_t pos = item.pos0 + (item.first + r) / args.group;
    const float m_new = mask_scores(args, s + r * kKvTile, count, base, pos, m[r]);
    alpha[r] = m[r] - m_new;
    m[r] = m_new;
  }
  for (int r = 0; r < rows; r += kLanes) store(alpha + r, exp2v(load(alpha + r)));  // the arrays have room for whole lanes
  for (int r = 0; r < rows; ++r) l[r] = l[r] * alpha[r] + weigh(s + r * kKvTile, count, m[r], p + r * kKvTile);
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

// The first `rows` rows, at most a row block.
template <bool kFetch>
static void score_some(int rows, const uint32_t* q, int64_t pairs, const Tile& tile, float* s) {
  switch (rows) {
    case 1: return score_rows<1, kFetch>(q, pairs, tile, s);
    case 2: return score_rows<2, kFetch>(q, pairs, tile, s);
    case 3: return score_rows<3, kFetch>(q, pairs, tile, s);
#if HR_LANES == 16
    case 4: return score_rows<4, kFetch>(q, pairs, tile, s);
    case 5: return score_rows<5, kFetch>(q, pairs, tile, s);
#endif
    default: return score_rows<kRowBlock, kFetch>(q, pairs, tile, s);
  }
}

template <bool kFetch>
static void value_some(int rows, const uint32_t* p, const float* alpha, const Tile& tile, int64_t dim, float* o) {
  switch (rows) {
    case 1: return value_rows<1, kFetch>(p, alpha, tile, dim, o);
    case 2: return value_rows<2, kFetch>(p, alpha, tile, dim, o);
    case 3: return value_rows<3, kFetch>(p, alpha, tile, dim, o);
#if HR_LANES == 16
    case 4: return value_rows<4, kFetch>(p, alpha, tile, dim, o);
    case 5: return value_rows<5, kFetch>(p, alpha, tile, dim, o);
#endif
    default: return value_rows<kRowBlock, kFetch>(p, alpha, tile, dim, o);
  }
}

// Running softmax of some rows: o [rows, dim], maximum m, sum l.
struct Softmax {
  float *o, *m, *l;

  void clear(int rows, int64_t dim) const {
    memset(o, 0, static_cast<size_t>(rows * dim) * 4);
    for (int r = 0; r < rows; ++r) m[r] = -1e30f, l[r] = 0.0f;
  }
};

// Add a later chunk's result. Into a cleared one this copies, and an unseen chunk changes nothing, bit for bit.
static __attribute__((noinline)) void merge(const Softmax& into, const Softmax& chunk, int rows, int64_t dim) {
  for (int r = 0; r < rows; ++r) {
    const float m = into.m[r] > chunk.m[r] ? into.m[r] : chunk.m[r];
    const float a = exp2v(splat(into.m[r] - m))[0], b = exp2v(splat(chunk.m[r] - m))[0];
    into.m[r] = m;
    into.l[r] = into.l[r] * a + chunk.l[r] * b;
    float* to = into.o + r * dim;
    const float* from = chunk.o + r * dim;
    for (int64_t d = 0; d < dim; d += kLanes) store(to + d, load(to + d) * a + load(from + d) * b);
  }
}

static void write_output(const AttentionArgs& args, const AttentionItem& item, const Softmax& done) {
  const KvLayer& kv = *args.kv;
  for (int r = 0; r < item.last - item.first; ++r) {
    const int32_t pair = item.first + r;
    const int64_t head = static_cast<int64_t>(item.kv_head) * args.group + pair % args.group;
    float* out = args.out + (item.token0 + pair / args.group) * args.ldo + head * kv.head_dim;
    const float* o = done.o + static_cast<int64_t>(r) * kv.dim;
    const float inverse = 1.0f / done.l[r];
    for (int64_t d = 0; d < kv.head_dim; ++d) out[d] = o[d] * inverse;
  }
}

// One thread's memory for an item.
struct Scratch {
  Softmax chunk, total;
  float *s, *alpha;
  uint16_t *q, *p;

  Scratch(void* memory, int64_t dim) {
    float* at = static_cast<float*>(memory);
    const auto take = [&](int64_t floats) {
      float* taken = at;
      at += floats;
      return taken;
    };
    chunk.o = take(kMaxItemRows * dim);
    total.o = take(kMaxItemRows * dim);
    s = take(kMaxItemRows * kKvTile);
    q = reinterpret_cast<uint16_t*>(take(kMaxItemRows * dim / 2));
    p = reinterpret_cast<uint16_t*>(take(kMaxItemRows * kKvTile / 2));
    chunk.m = take(kMaxItemRows);
    chunk.l = take(kMaxItemRows);
    total.m = take(kMaxItemRows);
    total.l = take(kMaxItemRows);
    alpha = take(kMaxItemRows);
  }
};

// Attend to positions from … to (inclusive), all in one chunk; `from` is aligned to a tile.
static void attend_chunk(const AttentionArgs& args, const AttentionItem& item, const Scratch& scratch, int64_t from,
                         int64_t to) {
  const KvLayer& kv = *args.kv;
  const int64_t dim = kv.dim, pairs = dim / 2;
  const int rows = item.last - item.first;
  const Softmax& state = scratch.chunk;
  const uint32_t* q = reinterpret_cast<const uint32_t*>(scratch.q);
  const uint32_t* p = reinterpret_cast<const uint32_t*>(scratch.p);
  const auto locate = [&](int64_t token) {
    return item.blocks[token / kv.block_size] * kv.block_stride + item.kv_head * kv.head_stride + token % kv.block_size * dim;
  };
  const bool fetches = rows <= kRowBlock;
  state.clear(rows, dim);
  for (int64_t base = from; base <= to; base += kKvTile) {
    Tile tile;
    const int64_t pieces = (to - base) / 16 + 1;
    tile.pieces = pieces < kKvTile / 16 ? static_cast<int>(pieces) : kKvTile / 16;
    for (int i = 0; i < tile.pieces; ++i) {
      const int64_t offset = locate(base + i * 16), next = base + kKvTile + i * 16;
      tile.k[i] = kv.k + offset;
      tile.v[i] = kv.v + offset;
      tile.next_k[i] = fetches && next <= to ? kv.k + locate(next) : nullptr;
    }
    for (int r = 0; r < rows; r += kRowBlock) {
      if (fetches) {
        score_some<true>(rows - r, q + r * pairs, pairs, tile, scratch.s + r * kKvTile);
      } else {
        score_some<false>(rows - r, q + r * pairs, pairs, tile, scratch.s + r * kKvTile);
      }
    }
    soften(args, item, base, tile.pieces * 16, scratch.s, scratch.p, state.m, state.l, scratch.alpha);
    for (int r = 0; r < rows; r += kRowBlock) {
      if (fetches) {
        value_some<true>(rows - r, p + r * (kKvTile / 2), scratch.alpha + r, tile, dim, state.o + r * dim);
      } else {
        value_some<false>(rows - r, p + r * (kKvTile / 2), scratch.alpha + r, tile, dim, state.o + r * dim);
      }
    }
  }
}

// The partial result at `at`, as laid out for AttentionItem::partial.
HR_INLINE Softmax partial_at(float* at, int64_t rows, int64_t dim) { return {at, at + rows * dim, at + rows * (dim + 1)}; }

static void attention(const AttentionArgs& args, const AttentionItem& item, void* memory) {
  const int64_t dim = args.kv->dim;
  const int rows = item.last - item.first;
  Scratch scratch(memory, dim);
  pack_queries(args, item, dim, scratch.q);
  const int64_t pos_first = item.pos0 + item.first / args.group;
  const int64_t pos_last = item.pos0 + (item.last - 1) / args.group;
  const int64_t low = args.window > 0 && pos_first >= args.window ? pos_first - args.window + 1 : 0;
  const int64_t low_tile = low / kKvTile * kKvTile;
  const auto attend = [&](int64_t chunk) {
    const int64_t begin = chunk * kKvChunk, end = begin + kKvChunk - 1;
    attend_chunk(args, item, scratch, low_tile > begin ? low_tile : begin, pos_last < end ? pos_last : end);
  };
  if (item.partial) {
    scratch.chunk = partial_at(item.partial, rows, dim);
    return attend(item.chunk);
  }
  const int64_t first = low / kKvChunk, last = pos_last / kKvChunk;
  if (first == last) {
    attend(first);
    return write_output(args, item, scratch.chunk);
  }
  scratch.total.clear(rows, dim);
  for (int64_t chunk = first; chunk <= last; ++chunk) {
    attend(chunk);
    merge(scratch.total, scratch.chunk, rows, dim);
  }
  write_output(args, item, scratch.total);
}

static void attention_merge(const AttentionArgs& args, const AttentionItem& item, float* partials, int32_t count,
                            void* memory) {
  const int64_t dim = args.kv->dim;
  const int rows = item.last - item.first;
  Scratch scratch(memory, dim);
  scratch.total.clear(rows, dim);
  for (int32_t i = 0; i < count; ++i) {
    merge(scratch.total, partial_at(partials + i * attention_partial_floats(rows, dim), rows, dim), rows, dim);
  }
  write_output(args, item, scratch.total);
}

}  // namespace HR_ISA
}  // namespace headrace
