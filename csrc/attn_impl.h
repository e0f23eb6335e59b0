// Paged attention for decode, prefill and mixed steps: items, included once per ISA.
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
#include "attn_chunk_impl.h"
#include "attn_rows_impl.h"

namespace headrace {
namespace HR_ISA {

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
