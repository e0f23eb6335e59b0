// Linear layers for one ISA, written once over its vectors. A gemm_<isa>.cpp defines `Vec` and includes this.
//
// Vec: 16 columns wide. F (16 fp32), I (16 int32), W (one 64-byte tile row); register budgets kRows* and the operations
// below. Everything is in an unnamed namespace: code compiled for one ISA must not be merged with another's.
//
// A micro-kernel holds rows x (16-column tiles) sums in registers and walks K once. Each sum is one chain in ascending k
// (integers: any order, they are exact), so a result does not depend on how many rows or blocks are done together.
#pragma once
#include <cstdint>
#include <utility>

#include "gemm.h"
#include "layout.h"

#ifndef HR_UNROLL_ROWS
#define HR_UNROLL_ROWS _Pragma("GCC unroll 4")
#endif
#define HR_INLINE __attribute__((always_inline)) inline
#define HR_NOINLINE __attribute__((noinline))

namespace headrace {
namespace {

template <int N>
struct Int {
  constexpr operator int() const { return N; }
};

template <int... Is, class Fn>
HR_INLINE void unroll_each(std::integer_sequence<int, Is...>, Fn&& fn) {
  (fn(Int<Is>{}), ...);
}

// fn(Int<0>{}), …, fn(Int<N-1>{}): indices are constants, so arrays indexed by them live in registers.
template <int N, class Fn>
HR_INLINE void unroll(Fn&& fn) {
  unroll_each(std::make_integer_sequence<int, N>{}, fn);
}

#define HR_EACH(name) (auto name) __attribute__((always_inline))

// R rows of T values meant for registers. Nested members, not an array: GCC keeps a large array in memory beside its registers.
template <class V, int N>
struct Chain {
  V head;
  Chain<V, N - 1> tail;
  template <int I>
  HR_INLINE V& at() {
    if constexpr (I == 0) {
      return head;
    } else {
      return tail.template at<I - 1>();
    }
  }
};
template <class V>
struct Chain<V, 0> {};

template <class V, int R, int T>
struct Grid {
  Chain<V, R * T> values;
  template <int I, int J>
  HR_INLINE V& operator()(Int<I>, Int<J>) {
    return values.template at<I * T + J>();
  }
};

template <class T>
HR_INLINE T load_as(const uint8_t* p) {
  T v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

HR_INLINE void prefetch(const uint8_t* p) { __builtin_prefetch(p, 0, 3); }

// Operands of a micro-kernel: NB column blocks (one weight stream each), R activation records.
struct Operands {
  const uint8_t* w[2];
  int64_t ahead[2];  // by tile: while weights at p are used, fetch those at p + ahead
  const uint8_t* a;
  int64_t row_bytes;
  int64_t steps, step_bytes, data_bytes;
  int64_t meta, groups;  // of the activation record
};

// One fp32 sum of 16 columns per row and tile; two tiles per block.
template <class Vec, int R, int T>
using Sums = Grid<typename Vec::F, R, T>;

// ---- fp32 ---------------------------------------------------------------------------------------------------------------
template <class Vec>
struct MicroF32 {
  static constexpr int kRows = Vec::kRowsFloat;
  template <int R, int NB>
  HR_INLINE static void run(const Operands& o, Sums<Vec, R, 2 * NB>& s) {
    unroll<R>([&] HR_EACH(r) { unroll<2 * NB>([&] HR_EACH(t) { s(r, t) = Vec::zero(); }); });
    for (int64_t k = 0; k < o.steps; ++k) {
      Grid<typename Vec::F, 1, 2 * NB> w;
      unroll<2 * NB>([&] HR_EACH(t) {
        const uint8_t* p = o.w[t / 2] + k * 128 + t % 2 * 64;
        w(Int<0>{}, t) = Vec::load(reinterpret_cast<const float*>(p));
        prefetch(p + o.ahead[t % 2]);
      });
      unroll<R>([&] HR_EACH(r) {
        const auto a = Vec::set(load_as<float>(o.a + r * o.row_bytes + k * 4));
        unroll<2 * NB>([&] HR_EACH(t) { s(r, t) = Vec::fma(w(Int<0>{}, t), a, s(r, t)); });
      });
    }
  }
};

// ---- bf16 ---------------------------------------------------------------------------------------------------------------
template <class Vec>
struct MicroBf16 {
  static constexpr int kRows = Vec::kRowsFloat;
  template <int R, int NB>
  HR_INLINE static void run(const Operands& o, Sums<Vec, R, 2 * NB>& s) {
    unroll<R>([&] HR_EACH(r) { unroll<2 * NB>([&] HR_EACH(t) { s(r, t) = Vec::zero(); }); });
    for (int64_t step = 0; step < o.steps; ++step) {
HR_UNROLL_ROWS
      for (int row = 0; row < 16; ++row) {
        Grid<typename Vec::W, 1, 2 * NB> w;
        unroll<2 * NB>([&] HR_EACH(t) {
          const uint8_t* p = o.w[t / 2] + step * 2048 + t % 2 * 1024 + row * 64;
          w(Int<0>{}, t) = Vec::load_row(p);
          prefetch(p + o.ahead[t % 2]);
        });
        unroll<R>([&] HR_EACH(r) {
          const uint32_t a = load_as<uint32_t>(o.a + r * o.row_bytes + step * 64 + row * 4);
          unroll<2 * NB>([&] HR_EACH(t) { s(r, t) = Vec::dot_bf16(s(r, t), w(Int<0>{}, t), a); });
        });
      }
    }
  }
};

// ---- int8, one scale per column and one per token ---------------------------------------------------------------------------
template <class Vec>
struct MicroI8 {
  static constexpr int kRows = Vec::kRowsInt;
  template <int R, int NB>
  HR_INLINE static void run(const Operands& o, Sums<Vec, R, 2 * NB>& s) {
    Grid<typename Vec::I, R, 2 * NB> acc;
    unroll<R>([&] HR_EACH(r) {
      const auto start = Vec::template start_u8<false>(load_as<int32_t>(o.a + r * o.row_bytes + o.meta + 4));
      unroll<2 * NB>([&] HR_EACH(t) { acc(r, t) = start; });
    });
    for (int64_t step = 0; step < o.steps; ++step) {
HR_UNROLL_ROWS
      for (int row = 0; row < 16; ++row) {
        Grid<typename Vec::W, 1, 2 * NB> w;
        unroll<2 * NB>([&] HR_EACH(t) {
          const uint8_t* p = o.w[t / 2] + step * 2048 + t % 2 * 1024 + row * 64;
          w(Int<0>{}, t) = Vec::load_row_u8(p);
          prefetch(p + o.ahead[t % 2]);
        });
        unroll<R>([&] HR_EACH(r) {
          const int32_t a = load_as<int32_t>(o.a + r * o.row_bytes + step * 64 + row * 4);
          unroll<2 * NB>([&] HR_EACH(t) { acc(r, t) = Vec::dot_u8(acc(r, t), w(Int<0>{}, t), a); });
        });
      }
    }
    unroll<2 * NB>([&] HR_EACH(t) {
      const auto scale = Vec::load(reinterpret_cast<const float*>(o.w[t / 2] + o.steps * 2048) + t % 2 * 16);
      unroll<R>([&] HR_EACH(r) {
        const auto both = Vec::mul(scale, Vec::set(load_as<float>(o.a + r * o.row_bytes + o.meta)));
        s(r, t) = Vec::mul(Vec::from_int(acc(r, t)), both);
      });
    });
  }
};

// Add one group's integer sums, scaled, to the float sums of tile t. The one order of float operations of grouped formats.
template <class Vec, bool Asym, int R, int T, int I, int J, int K>
HR_INLINE void add_group(const Operands& o, const uint8_t* scales, int64_t groups_per_step, int group_in_step, int64_t group,
                         Int<J> t, Grid<typename Vec::I, I, R>& acc, Int<K> place, Sums<Vec, R, T>& s) {
  const uint8_t* p = scales + group_in_step * 64 + t % 2 * 32;
  const auto scale = Vec::load_half(p);
  const uint8_t* meta = o.a + o.meta + group * 4;
  unroll<R>([&] HR_EACH(r) {
    const auto both = Vec::mul(scale, Vec::set(load_as<float>(meta + r * o.row_bytes)));
    s(r, t) = Vec::fma(Vec::from_int(acc(place, r)), both, s(r, t));
  });
  if constexpr (Asym) {
    const auto bias = Vec::load_half(p + groups_per_step * 64);
    unroll<R>([&] HR_EACH(r) {
      const auto sum = Vec::set(load_as<float>(meta + r * o.row_bytes + o.groups * 8));
      s(r, t) = Vec::fma(bias, sum, s(r, t));
    });
  }
}

// ---- int8 in groups -------------------------------------------------------------------------------------------------------
template <class Vec, int G, bool Asym>
struct MicroI8G {
  static constexpr int kRows = Vec::kRowsGroup8;
  static constexpr int kParts = G > 64 ? G / 64 : 1;       // data parts of 64 k in a step
  static constexpr int kGroups = G > 64 ? 1 : 64 / G;      // groups in a step
  static constexpr int kTileRows = G >= 64 ? 16 : G / 4;   // of one part that belong to one group
  template <int R, int NB>
  HR_INLINE static void run(const Operands& o, Sums<Vec, R, 2 * NB>& s) {
    unroll<R>([&] HR_EACH(r) { unroll<2 * NB>([&] HR_EACH(t) { s(r, t) = Vec::zero(); }); });
    for (int64_t step = 0; step < o.steps; ++step) {
      for (int g = 0; g < kGroups; ++g) {
        const int64_t group = step * kGroups + g;
        Grid<typename Vec::I, 2 * NB, R> acc;
        unroll<R>([&] HR_EACH(r) {
          const int32_t offset = load_as<int32_t>(o.a + o.meta + r * o.row_bytes + (o.groups + group) * 4);
          const auto start = Vec::template start_u8<Asym>(offset);
          unroll<2 * NB>([&] HR_EACH(t) { acc(t, r) = start; });
        });
        for (int part = 0; part < kParts; ++part) {
HR_UNROLL_ROWS
          for (int row = 0; row < kTileRows; ++row) {
            const int place = g * kTileRows + row;
            Grid<typename Vec::W, 1, 2 * NB> w;
            unroll<2 * NB>([&] HR_EACH(t) {
              const uint8_t* p = o.w[t / 2] + step * o.step_bytes + part * 2048 + t % 2 * 1024 + place * 64;
              w(Int<0>{}, t) = Vec::load_row_u8(p);
              prefetch(p + o.ahead[t % 2]);
            });
            unroll<R>([&] HR_EACH(r) {
              const int32_t a = load_as<int32_t>(o.a + r * o.row_bytes + (step * kParts + part) * 64 + place * 4);
              unroll<2 * NB>([&] HR_EACH(t) { acc(t, r) = Vec::dot_u8(acc(t, r), w(Int<0>{}, t), a); });
            });
          }
        }
        unroll<2 * NB>([&] HR_EACH(t) {
          const uint8_t* scales = o.w[t / 2] + step * o.step_bytes + o.data_bytes;
          add_group<Vec, Asym>(o, scales, kGroups, g, group, t, acc, t, s);
        });
      }
    }
  }
};

// ---- int4 in groups -------------------------------------------------------------------------------------------------------
// A row of 64 bytes gives two operands: low nibbles (k 0..31 of the part) and high nibbles (k 32..63). Few rows take both
// tiles of a step before the next one: one sequential stream. Many rows finish one tile first, over all K, because twice
// the rows then fit the registers; the weights are in L1 or L2 by then. The sums are the same either way.
template <class Vec, int G, bool Asym>
struct MicroI4G {
  static constexpr int kRows = Vec::kRowsGroup4;
  static constexpr int kParts = G > 64 ? G / 64 : 1;
  static constexpr int kGroups = G > 64 ? 1 : 64 / G;

  template <int R, int NB>
  HR_INLINE static void run(const Operands& o, Sums<Vec, R, 2 * NB>& s) {
    unroll<R>([&] HR_EACH(r) { unroll<2 * NB>([&] HR_EACH(t) { s(r, t) = Vec::zero(); }); });
    if constexpr (NB == 1 && R > Vec::kRowsTwoStreams) {
      unroll<2>([&] HR_EACH(t) {
        for (int64_t step = 0; step < o.steps; ++step) add_step<R, 2, true>(o, step, t, s);
      });
    } else {
      for (int64_t step = 0; step < o.steps; ++step) {
        unroll<2 * NB>([&] HR_EACH(t) { add_step<R, 2 * NB, false>(o, step, t, s); });
      }
    }
  }

  // One step of tile T. TileFirst: tile 0 fetches ahead for both.
  template <int R, int Tiles, bool TileFirst, int T>
  HR_INLINE static void add_step(const Operands& o, int64_t step, Int<T> t, Sums<Vec, R, Tiles>& s) {
    const uint8_t* start = o.w[T / 2] + step * o.step_bytes;
    const uint8_t* data = start + T % 2 * 512;
    Grid<typename Vec::I, 2, R> acc;  // of low nibbles, of high nibbles
    constexpr Int<0> low;
    constexpr Int<1> high;
    unroll<R>([&] HR_EACH(r) {
      const uint8_t* offsets = o.a + o.meta + r * o.row_bytes + (o.groups + step * kGroups) * 4;
      acc(low, r) = Asym ? Vec::zero_int() : Vec::set_int(load_as<int32_t>(offsets));
      acc(high, r) = Asym || kGroups == 1 ? Vec::zero_int() : Vec::set_int(load_as<int32_t>(offsets + 4));
    });
    for (int part = 0; part < kParts; ++part) {
      HR_UNROLL_ROWS
      for (int row = 0; row < 8; ++row) {
        const uint8_t* p = data + part * 1024 + row * 64;
        const auto both = Vec::load_row(p);
        if constexpr (!TileFirst) prefetch(p + o.ahead[T % 2]);
        if constexpr (TileFirst && T == 0) {
          prefetch(p + o.ahead[0]);
          prefetch(p + 512 + o.ahead[1]);
        }
        const auto w0 = Vec::low_nibbles(both), w1 = Vec::high_nibbles(both);
        unroll<R>([&] HR_EACH(r) {
          const uint8_t* a = o.a + r * o.row_bytes + (step * kParts + part) * 64 + row * 4;
          acc(low, r) = Vec::dot_u4(acc(low, r), w0, load_as<int32_t>(a));
          acc(high, r) = Vec::dot_u4(acc(high, r), w1, load_as<int32_t>(a + 32));
        });
      }
    }
    const uint8_t* scales = start + o.data_bytes;
    if constexpr (kGroups == 2) {
      add_group<Vec, Asym>(o, scales, 2, 0, step * 2, t, acc, low, s);
      add_group<Vec, Asym>(o, scales, 2, 1, step * 2 + 1, t, acc, high, s);
    } else {
      unroll<R>([&] HR_EACH(r) { acc(low, r) = Vec::add_int(acc(low, r), acc(high, r)); });
      add_group<Vec, Asym>(o, scales, 1, 0, step, t, acc, low, s);
    }
  }
};

}  // namespace
}  // namespace headrace

#include "gemm_epilogue_impl.h"
#include "gemm_drive_impl.h"
#include "gemm_limits_impl.h"
#include "gemm_prepare_impl.h"

namespace headrace {
namespace {

// Bf: the vectors for bf16 weights, where they differ from the others'.
template <class Vec, class Bf = Vec>
constexpr GemmKernels kernels_for() {
  return {prepare_share<Vec>, linear_share<Vec, Bf>, spin_dots<Vec>, Vec::kRowsInt * 2, read_memory<Vec>};
}

}  // namespace
}  // namespace headrace
