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
template <class Vec, class Micro, int R, int NB>
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
                   ahead.pace};
  fetch_output(*job.args, block, row, R);
  if constexpr (NB == 2) fetch_output(*job.args, other, row, R);
  alignas(64) float sums[R * NB * kBlockColumns];
  Micro::template run<R, NB>(o, sums);
  finish<Vec>(*job.args, block, row, R, sums, NB * kBlockColumns);
  if constexpr (NB == 2) finish<Vec>(*job.args, other, row, R, sums + kBlockColumns, NB * kBlockColumns);
}

using TileFn = void (*)(const Job&, int64_t, int64_t, int64_t, Ahead);

// tables[NB-1][R-1]
template <class Vec, class Micro, int NB, int... Rs>
HR_INLINE TileFn tile_for(int rows, std::integer_sequence<int, Rs...>) {
  static constexpr TileFn table[] = {tile<Vec, Micro, Rs + 1, NB>...};
  return table[rows - 1];
}

// The pace at which `walks` walks fetch one block.
HR_INLINE int64_t fetch_pace(const WeightLayout& weight, WeightFormat format, int64_t walks) {
  const int64_t k = weight.steps * weight.step_k;
  const int64_t rows = (format == WeightFormat::F32 ? k : format == WeightFormat::BF16 ? k / 2 : k / 4) * walks;
  return (weight.block_bytes + rows - 1) / rows;
}

// Few rows: the weights stream from memory once, as two streams that run half the share apart.
template <class Vec, class Micro>
void drive_few(const Job& job, const Share& share) {
  const int rows = static_cast<int>(share.row1 - share.row0);
  static_assert(Vec::kRowsTwoStreams <= Micro::kRows);
  const TileFn two = tile_for<Vec, Micro, 2>(rows, std::make_integer_sequence<int, Vec::kRowsTwoStreams>{});
  const TileFn one = tile_for<Vec, Micro, 1>(rows, std::make_integer_sequence<int, Micro::kRows>{});
  const int64_t half = (share.block1 - share.block0) / 2;
  for (int64_t i = 0; i < half; ++i) two(job, share.block0 + i, share.block0 + half + i, share.row0, {});
  if ((share.block1 - share.block0) % 2) {
    const uint8_t* own = block_at(job, share.block1 - 1) + kAheadTwoStreams;
    one(job, share.block1 - 1, share.block1 - 1, share.row0, {own, fetch_pace(job.weight, job.args->w->format, 1)});
  }
}

// Many rows: a block's weights come from memory once and then from L1 or L2 for the other row groups, which are of nearly
// equal size so that no group is left with a row or two. Each group fetches an equal part of the next block (of the first
// four groups, if there are more), so that memory and arithmetic overlap.
template <class Vec, class Micro>
void drive_many(const Job& job, const Share& share) {
  const int64_t rows = share.row1 - share.row0;
  const int64_t pieces = (rows + Micro::kRows - 1) / Micro::kRows;
  const int64_t fetchers = pieces < 4 ? pieces : 4;
  const int64_t pace = fetch_pace(job.weight, job.args->w->format, fetchers);
  for (int64_t block = share.block0; block < share.block1; ++block) {
    int64_t row = share.row0;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t end = share.row0 + rows * (piece + 1) / pieces;
      Ahead ahead{block_at(job, block), 0};  // nothing new
      if (pieces == 1) {
        ahead = {block_at(job, block) + kAheadOneStream, pace};
      } else if (block + 1 < share.block1 && piece < fetchers) {
        ahead = {block_at(job, block + 1) + job.weight.block_bytes * piece / fetchers, pace};
      }
      const TileFn one = tile_for<Vec, Micro, 1>(static_cast<int>(end - row), std::make_integer_sequence<int, Micro::kRows>{});
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
