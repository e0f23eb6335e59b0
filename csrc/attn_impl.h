// Paged attention for decode, prefill and mixed steps: one loop, included once per ISA.
//
// Online softmax over tiles of kKvTile positions, apart for each chunk of kKvChunk positions; chunks are merged in order.
// Tiles and chunks are aligned to absolute positions, so for one (token, head) the sequence of operations on every element
// depends on its position and window only: never on which rows share the item or which thread took a chunk. Decode, any
// cutting of a prompt and any number of threads give the same bits. What a row cannot see leaves its m, l and O unchanged
// exactly (weight 0, factor 1). Tiles may begin before the window, where blocks have been evicted: another of the
// sequence's own blocks stands in for them.
//
// Sinks (StreamingLLM): a token far from the start sees the first tokens as if only sinks and window existed. Keys keep the
// rotation of their own positions; the query that meets the sinks is turned back by the gap instead.
//
// bf16 KV: the weights are rounded to bf16 and l sums the rounded weights.
// int8 KV: a row's q becomes s16 with one scale. The weights of a row take the V scales of their tokens in and become s16
// with one unit per tile, 1/32767 of the largest: what is lost is below the noise of the 8-bit V. l sums the exact weights.
#pragma once
#include "attn_tile_impl.h"
#include "elt_impl.h"
#include "kernels.h"
#include "simd.h"

namespace headrace {
namespace HR_ISA {

// Scores of one row to base 2, capped and masked; returns the new maximum. `factor` turns q . k into a score, times the
// tokens' K scales if there are any (int8: then `s` holds int32).
template <class Kv>
static float mask_scores(const AttentionArgs& args, const Tile& tile, float factor, float* s, int64_t base, int64_t low,
                         int64_t pos, float m) {
  const int count = tile.pieces * 16;
  vf top = splat(m);
  const float scale = args.softcap > 0.0f ? factor / args.softcap : factor * kLog2e;
  for (int i = 0; i < count; i += kLanes) {
    vf x = load(s + i) * scale;
    if (Kv::kBytes == 1) {
      const vi sum = *reinterpret_cast<const vi*>(s + i);
      x = __builtin_convertvector(sum, vf) * (load_bf16(tile.k_scales[i / 16] + i % 16) * scale);
    }
    store(s + i, args.softcap > 0.0f ? tanhv(x) * (args.softcap * kLog2e) : x);
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
static float weigh_bf16(const float* s, int count, float m, uint16_t* p) {
  vf sum = {};
  for (int i = 0; i < count; i += kLanes) {
    store_bf16(p + i, exp2v(load(s + i) - m));
    sum = sum + load_bf16(p + i);
  }
  return hsum(sum);
}

// Weights of one row times the V scales, as s16 multiples of `unit`; returns the sum of the weights alone.
static float weigh_int8(const Tile& tile, float* s, float m, uint16_t* p, float* unit) {
  const int count = tile.pieces * 16;
  vf sum = {}, top = {};
  for (int i = 0; i < count; i += kLanes) {
    const vf weight = exp2v(load(s + i) - m), scaled = weight * load_bf16(tile.v_scales[i / 16] + i % 16);
    sum = sum + weight;
    top = vmax(scaled, top);
    store(s + i, scaled);
  }
  const float largest = hmax(top);
  const bool counts = largest > 1e-30f;
  const float factor = counts ? 32767.0f / largest : 0.0f;
  for (int i = 0; i < count; i += kLanes) store_s16(p + i, nearest(load(s + i) * factor));
  *unit = counts ? largest / 32767.0f : 0.0f;
  return hsum(sum);
}

// A query's Hadamard transform as s16 multiples of the scale that is returned, divided by the size of a block as the
// transformed keys ask for; padded with zeros. NaN if the query is not finite.
static float quantize_query(const float* q, int64_t n, int64_t dim, uint16_t* out) {
  float spread[kMaxHeadDim] = {};
  memcpy(spread, q, static_cast<size_t>(n) * 4);
  hadamard(spread, dim, hadamard_block(n));
  const float largest = largest_or_nan(spread, dim);
  const float inverse = largest > 1e-30f ? 32767.0f / largest : 0.0f;
  for (int64_t d = 0; d < dim; d += kLanes) store_s16(out + d, nearest(load(spread + d) * inverse));
  return (inverse > 0.0f || largest != largest ? largest / 32767.0f : 0.0f) / static_cast<float>(hadamard_block(n));
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
    float keep = 1.0f, sum = done.l[r];
    if (args.sink_logits) {
      const float sink = args.sink_logits[head] * kLog2e, top = sink > done.m[r] ? sink : done.m[r];
      keep = exp2v(splat(done.m[r] - top))[0];
      sum = sum * keep + exp2v(splat(sink - top))[0];
    }
    const float inverse = keep / sum;
    for (int64_t d = 0; d < kv.head_dim; ++d) out[d] = o[d] * inverse;
  }
}

// One thread's memory for an item.
struct Scratch {
  Softmax chunk, total;
  float *s, *alpha, *factor, *unit;  // factor: turns q . k into a score; unit: of the weights
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
    factor = take(kMaxItemRows);
    unit = take(kMaxItemRows);
  }
};

// Queries as the products take them; `turned`: as they meet the sinks.
template <class Kv>
static void pack_queries(const AttentionArgs& args, const AttentionItem& item, const Scratch& scratch, bool turned) {
  const int64_t head_dim = args.kv->head_dim, dim = args.kv->dim;
  uint16_t* out = scratch.q;
  for (int32_t pair = item.first; pair < item.last; ++pair, out += dim) {
    const int64_t head = static_cast<int64_t>(item.kv_head) * args.group + pair % args.group;
    const int64_t token = item.token0 + pair / args.group;
    const float* q = args.q + token * args.ldq + head * head_dim;
    float turned_q[kMaxHeadDim];
    if (turned && args.half > 0) {
      memcpy(turned_q, q, static_cast<size_t>(head_dim) * 4);
      rotate(q, args.turn_cos + token * args.half, args.turn_sin + token * args.half, args.half, turned_q);
      q = turned_q;
    }
    float& factor = scratch.factor[pair - item.first];
    factor = args.scale;
    if (Kv::kBytes == 1) {
      factor *= quantize_query(q, head_dim, dim, out);
      continue;
    }
    int64_t d = 0;
    for (; d + kLanes <= head_dim; d += kLanes) store_bf16(out + d, load(q + d));
    for (; d < head_dim; ++d) out[d] = to_bf16(q[d]);
    for (; d < dim; ++d) out[d] = 0;
  }
}

// Scores of all rows to weights: updates m and l; alpha is the factor for what each row summed before.
template <class Kv>
static void soften(const AttentionArgs& args, const AttentionItem& item, const Tile& tile, int64_t base, bool sinks,
                   const Scratch& scratch) {
  const int rows = item.last - item.first, count = tile.pieces * 16;
  float *m = scratch.chunk.m, *l = scratch.chunk.l, *alpha = scratch.alpha;
  for (int r = 0; r < rows; ++r) {
    const int64_t pos = sinks ? item.num_sinks - 1 : item.pos0 + (item.first + r) / args.group;
    const int64_t low = item.window > 0 && !sinks ? pos - item.window + 1 : 0;
    const float m_new = mask_scores<Kv>(args, tile, scratch.factor[r], scratch.s + r * kKvTile, base, low, pos, m[r]);
    alpha[r] = m[r] - m_new;
    m[r] = m_new;
  }
  for (int r = 0; r < rows; r += kLanes) store(alpha + r, exp2v(load(alpha + r)));  // the arrays have room for whole lanes
  for (int r = 0; r < rows; ++r) {
    float* s = scratch.s + r * kKvTile;
    uint16_t* p = scratch.p + r * kKvTile;
    const float sum = Kv::kBytes == 1 ? weigh_int8(tile, s, m[r], p, scratch.unit + r) : weigh_bf16(s, count, m[r], p);
    l[r] = l[r] * alpha[r] + sum;
  }
}

// Attend to positions from … to (inclusive), all in one chunk; `from` is aligned to a tile. `sinks`: to nothing but sinks.
template <class Kv>
static void attend_chunk(const AttentionArgs& args, const AttentionItem& item, const Scratch& scratch, int64_t from,
                         int64_t to, bool sinks) {
  const KvLayer& kv = *args.kv;
  const int64_t dim = kv.dim, pairs = dim / 2;
  const int rows = item.last - item.first;
  const Softmax& state = scratch.chunk;
  const uint32_t* q = reinterpret_cast<const uint32_t*>(scratch.q);
  const Weights weights{reinterpret_cast<const uint32_t*>(scratch.p), scratch.alpha, scratch.unit};
  const int64_t num_evicted = sinks ? 0 : item.num_evicted;
  const auto locate = [&](int64_t token) {
    const int64_t place = token / kv.block_size - num_evicted;
    return item.blocks[place > 0 ? place : 0] * kv.block_stride + item.kv_head * kv.head_stride;
  };
  const auto scales = [&](const char* head, int64_t token) {
    return reinterpret_cast<const uint16_t*>(head + kv.block_size * dim) + token % kv.block_size;
  };
  const bool fetches = rows <= kRowBlock;
  state.clear(rows, dim);
  for (int64_t base = from; base <= to; base += kKvTile) {
    Tile tile;
    const int64_t pieces = (to - base) / 16 + 1;
    tile.pieces = pieces < kKvTile / 16 ? static_cast<int>(pieces) : kKvTile / 16;
    for (int i = 0; i < tile.pieces; ++i) {
      const int64_t token = base + i * 16, next = token + kKvTile;
      const int64_t offset = locate(token), within = token % kv.block_size * dim * Kv::kBytes;
      tile.k[i] = kv.k + offset + within;
      tile.v[i] = kv.v + offset + within;
      tile.k_scales[i] = scales(kv.k + offset, token);
      tile.v_scales[i] = scales(kv.v + offset, token);
      tile.next_k[i] = fetches && next <= to ? kv.k + locate(next) + next % kv.block_size * dim * Kv::kBytes : nullptr;
      if (Kv::kBytes == 1 && fetches) {
        fetch(tile.v_scales[i]);
        if (tile.next_k[i]) fetch(scales(kv.k + locate(next), next));
      }
    }
    for (int r = 0; r < rows; r += kRowBlock) {
      if (fetches) {
        score_some<Kv, true>(rows - r, q + r * pairs, pairs, tile, scratch.s + r * kKvTile);
      } else {
        score_some<Kv, false>(rows - r, q + r * pairs, pairs, tile, scratch.s + r * kKvTile);
      }
    }
    soften<Kv>(args, item, tile, base, sinks, scratch);
    for (int r = 0; r < rows; r += kRowBlock) {
      if (fetches) {
        value_some<Kv, true>(rows - r, weights.from(r), tile, dim, state.o + r * dim);
      } else {
        value_some<Kv, false>(rows - r, weights.from(r), tile, dim, state.o + r * dim);
      }
    }
  }
}

// The partial result at `at`, as laid out for AttentionItem::partial.
HR_INLINE Softmax partial_at(float* at, int64_t rows, int64_t dim) { return {at, at + rows * dim, at + rows * (dim + 1)}; }

template <class Kv>
static void attend_item(const AttentionArgs& args, const AttentionItem& item, void* memory) {
  const int64_t dim = args.kv->dim;
  const int rows = item.last - item.first;
  Scratch scratch(memory, dim);
  const int64_t pos_first = item.pos0 + item.first / args.group;
  const int64_t pos_last = item.pos0 + (item.last - 1) / args.group;
  const int64_t low = item.window > 0 && pos_first >= item.window ? pos_first - item.window + 1 : 0;
  const int64_t low_tile = low / kKvTile * kKvTile;
  const auto attend = [&](int64_t chunk) {
    const int64_t begin = chunk * kKvChunk, end = begin + kKvChunk - 1;
    attend_chunk<Kv>(args, item, scratch, low_tile > begin ? low_tile : begin, pos_last < end ? pos_last : end, false);
  };
  const auto attend_sinks = [&] {
    pack_queries<Kv>(args, item, scratch, true);
    attend_chunk<Kv>(args, item, scratch, 0, item.num_sinks - 1, true);
  };
  if (item.partial) {
    scratch.chunk = partial_at(item.partial, rows, dim);
    if (item.chunk == kSinkChunk) return attend_sinks();
    pack_queries<Kv>(args, item, scratch, false);
    return attend(item.chunk);
  }
  const int64_t first = low / kKvChunk, last = pos_last / kKvChunk;
  scratch.total.clear(rows, dim);
  if (item.num_sinks > 0) {
    attend_sinks();
    merge(scratch.total, scratch.chunk, rows, dim);
  }
  pack_queries<Kv>(args, item, scratch, false);
  if (first == last && item.num_sinks == 0) {
    attend(first);
    return write_output(args, item, scratch.chunk);
  }
  for (int64_t chunk = first; chunk <= last; ++chunk) {
    attend(chunk);
    merge(scratch.total, scratch.chunk, rows, dim);
  }
  write_output(args, item, scratch.total);
}

static void attention(const AttentionArgs& args, const AttentionItem& item, void* memory) {
  if (args.kv->type == KvType::Int8) return attend_item<Int8Kv>(args, item, memory);
  attend_item<Bf16Kv>(args, item, memory);
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
