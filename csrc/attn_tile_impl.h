// The matrix products of attention over one tile of KV, for both ways K and V are kept. Included once per ISA.
//
// bf16: bf16 x bf16 products summed in fp32. int8: the other side has 16 bits (q and the weights are quantized by row, see
// attn_impl.h), so that every ISA has the product (pmaddwd, vpdpwssd) and the int32 sums are exact:
// 127 * 32767 * kMaxHeadDim < 2^31. A pair of channels (or of tokens) is a 32-bit lane of the other side either way.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace headrace {
namespace HR_ISA {

// Sixteen lanes, whatever the register width.
constexpr int kParts = 16 / kLanes;
struct Pairs16 {
  vu part[kParts];
};

struct Bf16Kv {
  static constexpr int kBytes = 2;  // of an element
  struct Acc {
    vf part[kParts];
  };

  HR_INLINE Pairs16 load16(const char* p) {
    Pairs16 b;
    for (int i = 0; i < kParts; ++i) b.part[i] = *reinterpret_cast<const vu_any*>(p + i * 4 * kLanes);
    return b;
  }

  // acc += a.lo * b.lo + a.hi * b.hi in every lane; `a` is two bf16.
  HR_INLINE void dot(Acc& acc, uint32_t a, const Pairs16& b) {
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

  HR_INLINE Acc first(const float* o, float alpha) {
    Acc acc;
    for (int i = 0; i < kParts; ++i) acc.part[i] = load(o + i * kLanes) * alpha;
    return acc;
  }

  HR_INLINE void finish(const Acc& acc, float* o, float, float) {
    for (int i = 0; i < kParts; ++i) store(o + i * kLanes, acc.part[i]);
  }
};

struct Int8Kv {
  static constexpr int kBytes = 1;
  struct Acc {
    vi part[kParts];
  };

  HR_INLINE Pairs16 load16(const char* p) {
    Pairs16 b;
    for (int i = 0; i < kParts; ++i) b.part[i] = widen_pairs(p + i * 2 * kLanes);
    return b;
  }

  // acc += a.lo * b.lo + a.hi * b.hi in every lane; `a` is two s16.
  HR_INLINE void dot(Acc& acc, uint32_t a, const Pairs16& b) {
    for (int i = 0; i < kParts; ++i) acc.part[i] = add_products16(acc.part[i], a, b.part[i]);
  }

  HR_INLINE Acc first(const float*, float) { return {}; }

  // o = o * alpha + acc * unit; both products rounded, so that every instantiation gives the same bits.
  HR_INLINE void finish(const Acc& acc, float* o, float alpha, float unit) {
    for (int i = 0; i < kParts; ++i) {
      const vf kept = rounded(load(o + i * kLanes) * alpha);
      store(o + i * kLanes, kept + rounded(__builtin_convertvector(acc.part[i], vf) * unit));
    }
  }
};

#if HR_LANES == 16
constexpr int kRowBlock = 6, kColBlock = 4;
#else
constexpr int kRowBlock = 4, kColBlock = 1;
#endif

// A tile's scores, their weights, their values: so many row blocks may be under way at once, see attn_chunk_impl.h.
constexpr int kStages = 3;

// Where the 16-token pieces of one KV tile are, and the K of the next tile, to be fetched meanwhile (null: not).
struct Tile {
  int64_t base;  // position
  const char* k[kKvTile / 16];
  const char* v[kKvTile / 16];
  const char* next_k[kKvTile / 16];
  float k_scales[kKvTile];  // int8 only, one for each token
  float v_scales[kKvTile];
  int pieces;
};

// Decode reads each K and V once, from memory, in pieces too short for the hardware's prefetcher: scores fetch the V of
// their tile, values the K of the next. kFetch is off where several row blocks share a tile that is in the cache by then.
HR_INLINE void fetch(const void* p) { __builtin_prefetch(p, 0, 3); }

// s[r][c*16 + lane] = q[r] . k for R rows and C pieces from `piece`; int32 in int8 tiles.
template <class Kv, int R, int C, bool kFetch>
static void score_block(const uint32_t* q, int64_t pairs, const Tile& tile, int piece, float* s) {
  typename Kv::Acc acc[R][C] = {};
  for (int64_t p = 0; p < pairs; ++p) {
    const int64_t at = p * 32 * Kv::kBytes;
    Pairs16 b[C];
    for (int c = 0; c < C; ++c) {
      b[c] = Kv::load16(tile.k[piece + c] + at);
      if (kFetch && at % 64 == 0) fetch(tile.v[piece + c] + at);
    }
    for (int r = 0; r < R; ++r) {
      const uint32_t a = q[r * pairs + p];
      for (int c = 0; c < C; ++c) Kv::dot(acc[r][c], a, b[c]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) memcpy(s + r * kKvTile + (piece + c) * 16, &acc[r][c], 64);
}

template <class Kv, int R, bool kFetch>
static void score_rows(const uint32_t* q, int64_t pairs, const Tile& tile, float* s) {
  int piece = 0;
  for (; piece + kColBlock <= tile.pieces; piece += kColBlock)
    score_block<Kv, R, kColBlock, kFetch>(q, pairs, tile, piece, s);
#if HR_LANES == 16
  switch (tile.pieces - piece) {
    case 3: return score_block<Kv, R, 3, kFetch>(q, pairs, tile, piece, s);
    case 2: return score_block<Kv, R, 2, kFetch>(q, pairs, tile, piece, s);
    case 1: return score_block<Kv, R, 1, kFetch>(q, pairs, tile, piece, s);
    default: return;
  }
#endif
}

// The weights of some rows and what turns them into outputs.
struct Weights {
  const uint32_t* p;   // [rows, kKvTile / 2]: pairs of bf16, or of s16
  const float* alpha;  // factor for what each row summed before
  const float* unit;   // int8: what a weight of 1 and a V of 1 stand for
};

// o[r][d0 + c*16 + lane] = o * alpha[r] + p[r] . v for R rows and C groups of 16 channels from d0.
template <class Kv, int R, int C, bool kFetch>
static void value_block(const Weights& w, const Tile& tile, int64_t dim, int64_t d0, float* o) {
  typename Kv::Acc acc[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) acc[r][c] = Kv::first(o + r * dim + d0 + c * 16, w.alpha[r]);
  int piece = 0;
  do {  // a tile has a piece: without the test the sums stay in registers
    const char* v = tile.v[piece] + d0 * 2 * Kv::kBytes;
    const char* next = kFetch ? tile.next_k[piece] : nullptr;
    for (int t = 0; t < 8; ++t, v += dim * 2 * Kv::kBytes) {
      Pairs16 b[C];
      for (int c = 0; c < C; ++c) {
        b[c] = Kv::load16(v + c * 32 * Kv::kBytes);
        const int64_t at = (d0 * 16 + (t * C + c) * 32) * Kv::kBytes;
        if (kFetch && next && at % 64 == 0) fetch(next + at);
      }
      for (int r = 0; r < R; ++r) {
        const uint32_t a = w.p[r * (kKvTile / 2) + piece * 8 + t];
        for (int c = 0; c < C; ++c) Kv::dot(acc[r][c], a, b[c]);
      }
    }
  } while (++piece < tile.pieces);
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) Kv::finish(acc[r][c], o + r * dim + d0 + c * 16, w.alpha[r], w.unit[r]);
}

template <class Kv, int R, bool kFetch>
static void value_rows(const Weights& w, const Tile& tile, int64_t dim, float* o) {
  int64_t d = 0;
  for (; d + 16 * kColBlock <= dim; d += 16 * kColBlock) value_block<Kv, R, kColBlock, kFetch>(w, tile, dim, d, o);
#if HR_LANES == 16
  switch ((dim - d) / 16) {
    case 3: return value_block<Kv, R, 3, kFetch>(w, tile, dim, d, o);
    case 2: return value_block<Kv, R, 2, kFetch>(w, tile, dim, d, o);
    case 1: return value_block<Kv, R, 1, kFetch>(w, tile, dim, d, o);
    default: return;
  }
#endif
}

// The first `rows` rows, at most a row block.
template <class Kv, bool kFetch>
static void score_some(int rows, const uint32_t* q, int64_t pairs, const Tile& tile, float* s) {
  switch (rows) {
    case 1: return score_rows<Kv, 1, kFetch>(q, pairs, tile, s);
    case 2: return score_rows<Kv, 2, kFetch>(q, pairs, tile, s);
    case 3: return score_rows<Kv, 3, kFetch>(q, pairs, tile, s);
#if HR_LANES == 16
    case 4: return score_rows<Kv, 4, kFetch>(q, pairs, tile, s);
    case 5: return score_rows<Kv, 5, kFetch>(q, pairs, tile, s);
#endif
    default: return score_rows<Kv, kRowBlock, kFetch>(q, pairs, tile, s);
  }
}

template <class Kv, bool kFetch>
static void value_some(int rows, const Weights& w, const Tile& tile, int64_t dim, float* o) {
  switch (rows) {
    case 1: return value_rows<Kv, 1, kFetch>(w, tile, dim, o);
    case 2: return value_rows<Kv, 2, kFetch>(w, tile, dim, o);
    case 3: return value_rows<Kv, 3, kFetch>(w, tile, dim, o);
#if HR_LANES == 16
    case 4: return value_rows<Kv, 4, kFetch>(w, tile, dim, o);
    case 5: return value_rows<Kv, 5, kFetch>(w, tile, dim, o);
#endif
    default: return value_rows<Kv, kRowBlock, kFetch>(w, tile, dim, o);
  }
}

}  // namespace HR_ISA
}  // namespace headrace
