// Attention of an item's rows to one chunk of positions, tile by tile. Included once per ISA.
//
// Two orders of the same operations: a row's numbers are the same bits in both, see attn_impl.h.
#pragma once
#include "attn_rows_impl.h"
#include "attn_tile_impl.h"
#include "attn_weights_impl.h"

namespace headrace {
namespace HR_ISA {

// Goes through a sequence's blocks by 16 tokens.
struct KvCursor {
  const KvLayer& kv;
  const AttentionItem& item;
  int64_t place, offset;

  KvCursor(const KvLayer& layer, const AttentionItem& of, int64_t token, int64_t num_evicted)
      : kv(layer), item(of), place(token / layer.block_size - num_evicted), offset(token % layer.block_size) {}
  // Where the K or V of the item's head begins. In front of the window any block of the sequence will do.
  int64_t head() const { return item.blocks[place > 0 ? place : 0] * kv.block_stride + item.kv_head * kv.head_stride; }
  const uint16_t* scales(const char* head) const {
    return reinterpret_cast<const uint16_t*>(head + static_cast<int64_t>(kv.block_size) * kv.dim) + offset;
  }
  void move() {
    offset += 16;
    if (offset == kv.block_size) offset = 0, ++place;
  }
};

// The tiles from … to (inclusive) of a chunk, one after another; `from` is aligned to a tile. kFetch: see attn_tile_impl.h.
template <class Kv, bool kFetch>
class TileCursor {
 public:
  TileCursor(const KvLayer& layer, const AttentionItem& item, int64_t from, int64_t to, int64_t num_evicted)
      : kv(layer), base(from), last(to), here(kv, item, from, num_evicted), ahead(kv, item, from + kKvTile, num_evicted) {}

  bool at_end() const { return base > last; }

  void take(Tile& tile) {
    const int64_t pieces = (last - base) / 16 + 1;
    tile.base = base;
    tile.pieces = pieces < kKvTile / 16 ? static_cast<int>(pieces) : kKvTile / 16;
    for (int i = 0; i < tile.pieces; ++i) {
      const int64_t head = here.head(), within = here.offset * kv.dim * Kv::kBytes;
      tile.k[i] = kv.k + head + within;
      tile.v[i] = kv.v + head + within;
      for (int lane = 0; Kv::kBytes == 1 && lane < 16; lane += kLanes) {
        store(tile.k_scales + i * 16 + lane, load_bf16(here.scales(kv.k + head) + lane));
        store(tile.v_scales + i * 16 + lane, load_bf16(here.scales(kv.v + head) + lane));
      }
      here.move();
      if (kFetch) look_ahead(tile, i);
    }
    base += kKvTile;
  }

 private:
  void look_ahead(Tile& tile, int i) {
    tile.next_k[i] = nullptr;
    if (base + kKvTile + i * 16 > last) return;
    const int64_t head = ahead.head();
    tile.next_k[i] = kv.k + head + ahead.offset * kv.dim * Kv::kBytes;
    if (Kv::kBytes == 1) {
      fetch(ahead.scales(kv.k + head));
      fetch(ahead.scales(kv.v + head));
    }
    ahead.move();
  }

  const KvLayer& kv;
  int64_t base;  // position of the next tile
  const int64_t last;
  KvCursor here, ahead;
};

// A single row block, tile by tile: K and V are read once, from memory, and nothing must come between a tile and the next.
template <class Kv>
static void attend_few(const AttentionArgs& args, const AttentionItem& item, const Scratch& scratch,
                       TileCursor<Kv, true> tiles, bool sinks) {
  const int64_t dim = args.kv->dim;
  const int rows = item.last - item.first;
  Tile tile;
  RowBlock work;
  const Weights weights{reinterpret_cast<const uint32_t*>(work.p), work.alpha, work.unit};
  while (!tiles.at_end()) {
    tiles.take(tile);
    score_some<Kv, true>(rows, reinterpret_cast<const uint32_t*>(scratch.q), dim / 2, tile, work.s);
    soften<Kv>(args, item, tile, sinks, scratch, 0, rows, work);
    value_some<Kv, true>(rows, weights, tile, dim, scratch.chunk.o);
  }
}

// Row blocks in stages: while one block's scores are made, the one before turns into weights and the one before that takes its
// values, so that no stage waits for the results of the other. Each tile is shared by all row blocks, which find it in cache.
template <class Kv>
static void attend_many(const AttentionArgs& args, const AttentionItem& item, const Scratch& scratch,
                        TileCursor<Kv, false> tiles, int64_t num_tiles, bool sinks) {
  const int64_t dim = args.kv->dim, pairs = dim / 2;
  const int rows = item.last - item.first, blocks = (rows + kRowBlock - 1) / kRowBlock;
  struct Place {
    int64_t tile = 0;
    int block = 0, slot = 0;
  } at[kStages];
  const auto advance = [&](Place& place) {
    place.slot = place.slot + 1 < kStages ? place.slot + 1 : 0;
    if (++place.block == blocks) place.block = 0, ++place.tile;
  };
  const auto rows_of = [&](const Place& place) {
    const int left = rows - place.block * kRowBlock;
    return left < kRowBlock ? left : kRowBlock;
  };
  Tile ring[kStages];
  RowBlock work[kStages];
  const int64_t rounds = num_tiles * blocks;
  for (int64_t round = 0; round < rounds + kStages - 1; ++round) {
    if (round < rounds) {
      Place& place = at[0];
      Tile& tile = ring[place.tile % kStages];
      if (place.block == 0) tiles.take(tile);
      const uint32_t* q = reinterpret_cast<const uint32_t*>(scratch.q) + place.block * kRowBlock * pairs;
      score_some<Kv, false>(rows_of(place), q, pairs, tile, work[place.slot].s);
      advance(place);
    }
    if (round >= 1 && round - 1 < rounds) {
      Place& place = at[1];
      soften<Kv>(args, item, ring[place.tile % kStages], sinks, scratch, place.block * kRowBlock, rows_of(place),
                 work[place.slot]);
      advance(place);
    }
    if (round >= 2) {
      Place& place = at[2];
      const RowBlock& block = work[place.slot];
      const Weights weights{reinterpret_cast<const uint32_t*>(block.p), block.alpha, block.unit};
      float* o = scratch.chunk.o + place.block * kRowBlock * dim;
      value_some<Kv, false>(rows_of(place), weights, ring[place.tile % kStages], dim, o);
      advance(place);
    }
  }
}

// Attend to positions from … to (inclusive), all in one chunk; `from` is aligned to a tile. `sinks`: to nothing but sinks.
template <class Kv>
static void attend_chunk(const AttentionArgs& args, const AttentionItem& item, const Scratch& scratch, int64_t from,
                         int64_t to, bool sinks) {
  const KvLayer& kv = *args.kv;
  const int rows = item.last - item.first;
  const int64_t num_evicted = sinks ? 0 : item.num_evicted;
  scratch.chunk.clear(rows, kv.dim);
  memset(scratch.sums, 0, static_cast<size_t>(rows * kLanes) * 4);
  for (int r = 0; r < rows; ++r)
    scratch.pos[r] = sinks ? item.num_sinks - 1 : item.pos0 + (item.first + r) / args.group;
  if (rows <= kRowBlock) {
    attend_few<Kv>(args, item, scratch, {kv, item, from, to, num_evicted}, sinks);
  } else {
    attend_many<Kv>(args, item, scratch, {kv, item, from, to, num_evicted}, (to - from) / kKvTile + 1, sinks);
  }
  for (int r = 0; r < rows; ++r) scratch.chunk.l[r] = hsum(load(scratch.sums + r * kLanes));
}

}  // namespace HR_ISA
}  // namespace headrace
