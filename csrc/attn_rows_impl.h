// The rows of an attention item, one for each (token, query head): their queries, their running softmax, their outputs.
// Included once per ISA.
#pragma once
#include "attn_tile_impl.h"
#include "elt_impl.h"
#include "kernels.h"
#include "simd.h"

namespace headrace {
namespace HR_ISA {

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

// Goes through the (token, head) pairs of an item.
struct PairCursor {
  const int32_t group;
  int64_t token, head;  // packed token; query head
  int32_t within;       // the group

  PairCursor(const AttentionArgs& args, const AttentionItem& item)
      : group(args.group), token(item.token0 + item.first / args.group), within(item.first % args.group) {
    head = static_cast<int64_t>(item.kv_head) * group + within;
  }
  void move() {
    ++head;
    if (++within == group) within = 0, head -= group, ++token;
  }
};

// One thread's memory for an item.
struct Scratch {
  Softmax chunk, total;
  float *sums, *factor;  // sums: of the chunk's weights, [rows, kLanes]; factor: turns q . k into a score
  uint16_t* q;
  int32_t* pos;

  Scratch(void* memory, int64_t dim) {
    float* at = static_cast<float*>(memory);
    const auto take = [&](int64_t floats) {
      float* taken = at;
      at += floats;
      return taken;
    };
    chunk.o = take(kMaxItemRows * dim);
    total.o = take(kMaxItemRows * dim);
    sums = take(kMaxItemRows * kLanes);
    q = reinterpret_cast<uint16_t*>(take(kMaxItemRows * dim / 2));
    chunk.m = take(kMaxItemRows);
    chunk.l = take(kMaxItemRows);
    total.m = take(kMaxItemRows);
    total.l = take(kMaxItemRows);
    factor = take(kMaxItemRows);
    pos = reinterpret_cast<int32_t*>(take(kMaxItemRows));
  }
};

// A query's Hadamard transform as s16 multiples of the scale that is returned, divided by the size of a block as the
// transformed keys ask for; padded with zeros. NaN if the query is not finite.
static float quantize_query(const float* q, int64_t n, int64_t dim, uint16_t* out) {
  float spread[kMaxHeadDim];
  memcpy(spread, q, static_cast<size_t>(n) * 4);
  for (int64_t d = n; d < dim; ++d) spread[d] = 0.0f;
  hadamard(spread, dim, hadamard_block(n));
  const float largest = largest_or_nan(spread, dim);
  const float inverse = largest > 1e-30f ? 32767.0f / largest : 0.0f;
  for (int64_t d = 0; d < dim; d += kLanes) store_s16(out + d, nearest(load(spread + d) * inverse));
  return (inverse > 0.0f || largest != largest ? largest / 32767.0f : 0.0f) / static_cast<float>(hadamard_block(n));
}

constexpr int64_t kTokensAhead = 4;  // to fetch: one head of successive tokens lies too far apart for the hardware's prefetcher

// Queries as the products take them; `turned`: as they meet the sinks.
template <class Kv>
static void pack_queries(const AttentionArgs& args, const AttentionItem& item, const Scratch& scratch, bool turned) {
  const int64_t head_dim = args.kv->head_dim, dim = args.kv->dim;
  uint16_t* out = scratch.q;
  PairCursor pair(args, item);
  for (int r = 0; r < item.last - item.first; ++r, out += dim, pair.move()) {
    const float* q = args.q + pair.token * args.ldq + pair.head * head_dim;
    for (int64_t d = 0; d < head_dim; d += 16) fetch(q + kTokensAhead * args.ldq + d);
    float turned_q[kMaxHeadDim];
    if (turned && args.half > 0) {
      memcpy(turned_q, q, static_cast<size_t>(head_dim) * 4);
      rotate(q, args.turn_cos + pair.token * args.half, args.turn_sin + pair.token * args.half, args.half, turned_q);
      q = turned_q;
    }
    float& factor = scratch.factor[r];
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

static void write_output(const AttentionArgs& args, const AttentionItem& item, const Softmax& done) {
  const KvLayer& kv = *args.kv;
  PairCursor pair(args, item);
  for (int r = 0; r < item.last - item.first; ++r, pair.move()) {
    float* out = args.out + pair.token * args.ldo + pair.head * kv.head_dim;
    const float* o = done.o + static_cast<int64_t>(r) * kv.dim;
    for (int64_t at = 0; at < kv.head_dim; at += 16) __builtin_prefetch(out + kTokensAhead * args.ldo + at, 1);
    float keep = 1.0f, sum = done.l[r];
    if (args.sink_logits) {
      const float sink = args.sink_logits[pair.head] * kLog2e, top = sink > done.m[r] ? sink : done.m[r];
      keep = exp2v(splat(done.m[r] - top))[0];
      sum = sum * keep + exp2v(splat(sink - top))[0];
    }
    const float inverse = keep / sum;
    int64_t d = 0;
    for (; d + kLanes <= kv.head_dim; d += kLanes) store(out + d, load(o + d) * inverse);
    for (; d < kv.head_dim; ++d) out[d] = o[d] * inverse;
  }
}

}  // namespace HR_ISA
}  // namespace headrace
