// Walks a share of a linear layer with a format's micro-kernel. Part of gemm_impl.h.
#pragma once

namespace headrace {
namespace {

struct Job {
  const LinearArgs* args;
  WeightLayout weight;
  ActLayout acts;
};

HR_INLINE Job job_of(const LinearArgs& args) {
  const PackedWeight& w = *args.w;
  return {&args, weight_layout(w), act_layout(w.format, w.k, w.group)};
}

// What a walk fetches for a later one, see Operands.
struct Ahead {
  const uint8_t* next;
  int64_t pace;
  const uint8_t* later;
  int64_t later_pace;
};

HR_INLINE const uint8_t* block_at(const Job& job, int64_t block) {
  return static_cast<const uint8_t*>(job.args->w->base) + block * job.weight.block_bytes;
}

// Asks for the lines that `finish` will write. Without it the sums of groups queue up behind stores that miss, because
// stores leave in order.
HR_INLINE void fetch_output(const LinearArgs& args, int64_t block, int64_t row, int rows) {
  const bool gated = args.epilogue == Epilogue::Glu;
  const float* y = args.y + row * args.ldy + block * (gated ? kTileColumns : kBlockColumns);
  for (int r = 0; r < rows; ++r, y += args.ldy) {
    __builtin_prefetch(y, 1);
    if (!gated) __builtin_prefetch(y + kTileColumns, 1);
  }
}

// R rows from `row` and NB blocks: `block` and, for NB = 2, `other`.
template <class Vec, class Micro, int R, int NB, bool Later>
HR_NOINLINE void tile(const Job& job, int64_t block, int64_t other, int64_t row, Ahead ahead) {
  const Operands o{{block_at(job, block), block_at(job, other)},
                   static_cast<const uint8_t*>(job.args->acts) + row * job.acts.row_bytes,
                   job.acts.row_bytes,
                   job.weight.steps,
                   job.weight.step_bytes,
                   job.weight.data_bytes,
                   job.acts.meta,
                   job.acts.groups,
                   ahead.next,
                   ahead.pace,
                   ahead.later,
                   ahead.later_pace};
  fetch_output(*job.args, block, row, R);
  if constexpr (NB == 2) fetch_output(*job.args, other, row, R);
  alignas(64) float sums[R * NB * kBlockColumns];
  Micro::template run<R, NB, Later>(o, sums);
  finish<Vec>(*job.args, block, row, R, sums, NB * kBlockColumns);
  if constexpr (NB == 2) finish<Vec>(*job.args, other, row, R, sums + kBlockColumns, NB * kBlockColumns);
}

using TileFn = void (*)(const Job&, int64_t, int64_t, int64_t, Ahead);

// Fetching for a later reader is for row groups of which there are many, so of more than half the rows that fit.
template <class Vec, class Micro, int NB, bool Later, int... Rs>
HR_INLINE TileFn tile_for(int rows, std::integer_sequence<int, Rs...>) {
  static constexpr TileFn table[] = {tile<Vec, Micro, Rs + 1, NB, (Later && 2 * (Rs + 1) > Micro::kRows)>...};
  return table[rows - 1];
}

// Pairs of tile rows that a walk of one stream meets.
HR_INLINE int64_t pairs_of_rows(const Job& job) {
  const int64_t k = job.weight.steps * job.weight.step_k;
  const WeightFormat format = job.args->w->format;
  return format == WeightFormat::F32 ? k : format == WeightFormat::BF16 ? k / 2 : k / 4;
}

// The pace at which so many pairs of tile rows fetch `bytes`.
HR_INLINE int64_t pace_of(int64_t bytes, int64_t pairs) { return (bytes + pairs - 1) / pairs; }

// What memory brings for a later reader beside the weights, in bytes at each pair of tile rows; more delays the weights.
constexpr int64_t kLaterPace = 32;

// The part of the layer's Fetches that one walk takes; false: nothing is left.
HR_INLINE bool fetch_for_later(Fetches* fetches, int64_t pairs, Ahead* ahead) {
  if (fetches == nullptr || (fetches->left == 0 && !fetches->next(fetches))) return false;
  const int64_t bytes = fetches->left < pairs * kLaterPace ? fetches->left : pairs * kLaterPace;
  ahead->later = fetches->at;
  ahead->later_pace = pace_of(bytes, pairs);
  fetches->at += bytes;
  fetches->left -= bytes;
  return true;
}

// Few rows: the weights stream from memory once, as two streams that run half the share apart.
template <class Vec, class Micro>
void drive_few(const Job& job, const Share& share) {
  const int rows = static_cast<int>(share.row1 - share.row0);
  static_assert(Vec::kRowsTwoStreams <= Micro::kRows);
  const TileFn two = tile_for<Vec, Micro, 2, false>(rows, std::make_integer_sequence<int, Vec::kRowsTwoStreams>{});
  const TileFn one = tile_for<Vec, Micro, 1, false>(rows, std::make_integer_sequence<int, Micro::kRows>{});
  const int64_t half = (share.block1 - share.block0) / 2;
  for (int64_t i = 0; i < half; ++i) two(job, share.block0 + i, share.block0 + half + i, share.row0, {});
  if ((share.block1 - share.block0) % 2) {
    const uint8_t* own = block_at(job, share.block1 - 1) + kAheadTwoStreams;
    one(job, share.block1 - 1, share.block1 - 1, share.row0, {own, pace_of(job.weight.block_bytes, pairs_of_rows(job)), own, 0});
  }
}

// Many rows: a block's weights come from memory once and then from L1 or L2 for the other row groups, which are of nearly
// equal size so that no group is left with a row or two. Each group fetches an equal part of the next block (of the first
// four groups, if there are more), so that memory and arithmetic overlap. From three groups on memory has time for more.
template <class Vec, class Micro>
void drive_many(const Job& job, const Share& share) {
  const int64_t rows = share.row1 - share.row0;
  const int64_t pieces = (rows + Micro::kRows - 1) / Micro::kRows;
  const int64_t fetchers = pieces < 4 ? pieces : 4;
  const int64_t pairs = pairs_of_rows(job), pace = pace_of(job.weight.block_bytes, pairs * fetchers);
  constexpr auto kRowCounts = std::make_integer_sequence<int, Micro::kRows>{};
  for (int64_t block = share.block0; block < share.block1; ++block) {
    int64_t row = share.row0;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t end = share.row0 + rows * (piece + 1) / pieces;
      const uint8_t* here = block_at(job, block);
      Ahead ahead{here, 0, here, 0};  // nothing new
      if (pieces == 1) {
        ahead = {here + kAheadOneStream, pace, here, 0};
      } else if (block + 1 < share.block1 && piece < fetchers) {
        ahead = {here + job.weight.block_bytes + job.weight.block_bytes * piece / fetchers, pace, here, 0};
      }
      const int count = static_cast<int>(end - row);
      const bool later = pieces > 2 && fetch_for_later(job.args->fetches, pairs, &ahead);
      const TileFn one = later ? tile_for<Vec, Micro, 1, true>(count, kRowCounts) : tile_for<Vec, Micro, 1, false>(count, kRowCounts);
      one(job, block, block, row, ahead);
      row = end;
    }
  }
}

template <class Vec, class Micro>
void drive(const Job& job, const Share& share) {
  if (share.row1 <= share.row0) return;
  if constexpr (Vec::kRowsTwoStreams > 0) {
    if (share.row1 - share.row0 <= Vec::kRowsTwoStreams) return drive_few<Vec, Micro>(job, share);
  }
  drive_many<Vec, Micro>(job, share);
}

// Both formats in groups of bytes: with a fixed length of 32, or as long as the step.
template <class Vec>
void linear_bytes_in_groups(const LinearArgs& args, const Share& share) {
  const PackedWeight& w = *args.w;
  const Job job = job_of(args);
  if (w.format == WeightFormat::I8R) return drive<Vec, MicroI8G<Vec, 0, false>>(job, share);
  if (w.group == 32) {
    return w.asymmetric ? drive<Vec, MicroI8G<Vec, 32, true>>(job, share) : drive<Vec, MicroI8G<Vec, 32, false>>(job, share);
  }
  return w.asymmetric ? drive<Vec, MicroI8G<Vec, 0, true>>(job, share) : drive<Vec, MicroI8G<Vec, 0, false>>(job, share);
}

template <class Vec>
void linear_nibbles(const LinearArgs& args, const Share& share) {
  const PackedWeight& w = *args.w;
  const Job job = job_of(args);
  if (w.group == 32) {
    return w.asymmetric ? drive<Vec, MicroI4G<Vec, 32, true>>(job, share) : drive<Vec, MicroI4G<Vec, 32, false>>(job, share);
  }
  return w.asymmetric ? drive<Vec, MicroI4G<Vec, 0, true>>(job, share) : drive<Vec, MicroI4G<Vec, 0, false>>(job, share);
}

// Bf: the vectors for bf16 weights, where they differ from the others'. Vec may have its groups compiled in other files.
template <class Vec, class Bf>
void linear_share(const LinearArgs& args, const Share& share) {
  switch (args.w->format) {
    case WeightFormat::F32:
      return drive<Vec, MicroF32<Vec>>(job_of(args), share);
    case WeightFormat::BF16:
      return drive<Bf, MicroBf16<Bf>>(job_of(args), share);
    case WeightFormat::I8:
      return drive<Vec, MicroI8<Vec>>(job_of(args), share);
    case WeightFormat::I8G:
    case WeightFormat::I8R:
      if constexpr (requires { Vec::bytes_in_groups; }) return Vec::bytes_in_groups(args, share);
      else return linear_bytes_in_groups<Vec>(args, share);
    case WeightFormat::I4G:
      if constexpr (requires { Vec::nibbles; }) return Vec::nibbles(args, share);
      else return linear_nibbles<Vec>(args, share);
  }
}

}  // namespace
}  // namespace headrace
