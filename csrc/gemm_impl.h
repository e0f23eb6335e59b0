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
#define HR_NO_UNROLL _Pragma("GCC unroll 1")

// fn for N tile rows: written out where the compiler has the registers for it.
template <class Vec, int N, class Fn>
HR_INLINE void each_row(Fn&& fn) {
  if constexpr (Vec::kRowsTwoStreams > 1) {
    unroll<N>(fn);
  } else {
HR_NO_UNROLL
    for (int i = 0; i < N; ++i) fn(i);
  }
}

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
  template <int I>
  HR_INLINE const V& at() const {
    return const_cast<Chain*>(this)->template at<I>();
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
HR_INLINE void prefetch_to_l2(const uint8_t* p) { __builtin_prefetch(p, 0, 2); }

// Operands of a micro-kernel: NB column blocks (one weight stream each), R activation records.
struct Operands {
  const uint8_t* w[2];
  const uint8_t* a;
  int64_t row_bytes;
  int64_t steps, step_bytes, data_bytes;
  int64_t meta, groups;  // of the activation record
  // What a walk of one stream fetches for a later one: at each pair of tile rows the lines at and behind a pointer that
  // starts at `next` and moves by `pace` bytes, so that memory works as evenly as arithmetic.
  const uint8_t* next;
  int64_t pace;
  // Likewise the line at a pointer that moves from `later`: memory for a later reader, see Fetches.
  const uint8_t* later;
  int64_t later_pace;
};

// Distances that hide DRAM latency (about 4 KiB per core at full speed per 100 ns) and stay in L1 until used; measured best on
// Zen 5, flat around it.
constexpr int64_t kAheadTwoStreams = 3072;
constexpr int64_t kAheadOneStream = 8192;

// A pointer the compiler knows nothing about: it neither keeps what lies there in registers over a loop, nor trades the
// pointer for others that it would have to spill.
template <class T>
HR_INLINE T* opaque(T* p) {
  asm volatile("" : "+r"(p));
  return p;
}

// Fetches: of two streams, each line some way ahead; of one stream, see Operands. `Later`: for a later reader as well.
template <int NB, bool Later>
struct Fetcher {
  const uint8_t *next, *later;
  int64_t pace, later_pace;
  HR_INLINE explicit Fetcher(const Operands& o)
      : next(opaque(o.next)), later(opaque(o.later)), pace(o.pace), later_pace(o.later_pace) {}
  // For the pair of weight tile rows of one block.
  HR_INLINE void row() {
    if constexpr (NB == 1) {
      prefetch(next);
      prefetch(next + 64);
      next += pace;
    }
    if constexpr (Later) {
      prefetch_to_l2(later);
      later += later_pace;
    }
  }
  // For a line at p.
  HR_INLINE void line(const uint8_t* p) const {
    if constexpr (NB == 2) prefetch(p + kAheadTwoStreams);
  }
};

// Activation records of R rows, reached from every third one by the record size and twice that: x86 adds those for free.
template <int R>
struct Rows {
  static constexpr int kBases = (R + 2) / 3;
  const uint8_t* base[kBases];
  int64_t row_bytes;
  HR_INLINE Rows(const uint8_t* a, int64_t bytes) : row_bytes(bytes) {
    unroll<kBases>([&] HR_EACH(i) { base[i] = opaque(a + i * 3 * bytes); });
  }
  template <int I>
  HR_INLINE const uint8_t* at(Int<I>) const {
    return base[I / 3] + I % 3 * row_bytes;
  }
  HR_INLINE void move(int64_t bytes) {
    unroll<kBases>([&] HR_EACH(i) { base[i] = opaque(base[i] + bytes); });
  }
};

// The weights of NB blocks and the activations of R rows at the same k.
template <int R, int NB, bool Later>
struct Walk {
  Chain<const uint8_t*, NB> w;
  Rows<R> rows;
  Fetcher<NB, Later> fetch;
  HR_INLINE explicit Walk(const Operands& o) : rows(o.a, o.row_bytes), fetch(o) {
    unroll<NB>([&] HR_EACH(i) { w.template at<i>() = opaque(o.w[i]); });
  }
  template <int T>
  HR_INLINE const uint8_t* block_of(Int<T>) const {  // that tile T is of
    return w.template at<T / 2>();
  }
  HR_INLINE void move(int64_t weight_bytes, int64_t act_bytes) {
    unroll<NB>([&] HR_EACH(i) { w.template at<i>() = opaque(w.template at<i>() + weight_bytes); });
    rows.move(act_bytes);
  }
};

// Where a micro-kernel leaves its result: fp32 [R][T][16], T = two tiles per block. Formats in groups add to it group by
// group: it stays in L1, and all registers are free for the integer sums, which are touched far more often.
template <class Vec, int R, int T>
HR_INLINE void clear_sums(float* s) {
  unroll<R * T>([&] HR_EACH(i) { Vec::store(s + i * 16, Vec::zero()); });
}

template <class Vec, int R, int T>
HR_INLINE void store_sums(Grid<typename Vec::F, R, T>& sums, float* s) {
  unroll<R>([&] HR_EACH(r) { unroll<T>([&] HR_EACH(t) { Vec::store(s + (r * T + t) * 16, sums(r, t)); }); });
}

template <class Vec>
constexpr int kFewRows = Vec::kRowsTwoStreams > 0 ? Vec::kRowsTwoStreams : 1;

// ---- fp32 ---------------------------------------------------------------------------------------------------------------
template <class Vec>
struct MicroF32 {
  static constexpr int kRows = kFewRows<Vec>;  // for tests: fewer row counts to compile
  template <int R, int NB, bool Later>
  HR_INLINE static void run(const Operands& o, float* s) {
    Grid<typename Vec::F, R, 2 * NB> acc;
    unroll<R>([&] HR_EACH(r) { unroll<2 * NB>([&] HR_EACH(t) { acc(r, t) = Vec::zero(); }); });
    Walk<R, NB, Later> walk(o);
    for (int64_t k = 0; k < o.steps; ++k) {
      walk.fetch.row();
      Grid<typename Vec::F, 1, 2 * NB> w;
      unroll<2 * NB>([&] HR_EACH(t) {
        const uint8_t* p = walk.block_of(t) + t % 2 * 64;
        w(Int<0>{}, t) = Vec::load(reinterpret_cast<const float*>(p));
        walk.fetch.line(p);
      });
      unroll<R>([&] HR_EACH(r) {
        const auto a = Vec::set(load_as<float>(walk.rows.at(r)));
        unroll<2 * NB>([&] HR_EACH(t) { acc(r, t) = Vec::fma(w(Int<0>{}, t), a, acc(r, t)); });
      });
      walk.move(128, 4);
    }
    store_sums<Vec, R, 2 * NB>(acc, s);
  }
};

// ---- bf16 and int8: tile rows ------------------------------------------------------------------------------------------------
// acc(t, r) = dot(acc(t, r), tile row of tile t, 4 bytes of activation row r) over `count` tile rows (a multiple of 4). Two
// streams wait for memory: writing more rows out gains nothing there.
template <class Vec, int R, int NB, bool Later, class Sum, class Load, class Dot>
HR_INLINE void dot_rows(Walk<R, NB, Later>& walk, int count, Grid<Sum, 2 * NB, R>& acc, Load&& load, Dot&& dot) {
  constexpr int kStep = NB == 2 ? 2 : 4;
HR_NO_UNROLL
  for (int row = 0; row < count; row += kStep) {
    each_row<Vec, kStep>([&] HR_EACH(i) {
      walk.fetch.row();
      Grid<typename Vec::W, 1, 2 * NB> tile;
      unroll<2 * NB>([&] HR_EACH(t) {
        const uint8_t* p = walk.block_of(t) + t % 2 * 1024 + i * 64;
        tile(Int<0>{}, t) = load(p);
        walk.fetch.line(p);
      });
      unroll<R>([&] HR_EACH(r) {
        const uint32_t a = load_as<uint32_t>(walk.rows.at(r) + i * 4);
        unroll<2 * NB>([&] HR_EACH(t) { acc(t, r) = dot(acc(t, r), tile(Int<0>{}, t), a); });
      });
    });
    walk.move(kStep * 64, kStep * 4);
  }
}

template <class Vec>
struct MicroBf16 {
  static constexpr int kRows = Vec::kRowsFloat;
  template <int R, int NB, bool Later>
  HR_INLINE static void run(const Operands& o, float* s) {
    Grid<typename Vec::F, 2 * NB, R> acc;
    unroll<R>([&] HR_EACH(r) { unroll<2 * NB>([&] HR_EACH(t) { acc(t, r) = Vec::zero(); }); });
    Walk<R, NB, Later> walk(o);
    for (int64_t step = 0; step < o.steps; ++step) {
      dot_rows<Vec>(walk, 16, acc, [](const uint8_t* p) __attribute__((always_inline)) { return Vec::load_row(p); },
                    [](auto sum, auto w, uint32_t a) __attribute__((always_inline)) { return Vec::dot_bf16(sum, w, a); });
      walk.move(1024, 0);
    }
    unroll<R>([&] HR_EACH(r) { unroll<2 * NB>([&] HR_EACH(t) { Vec::store(s + (r * 2 * NB + t) * 16, acc(t, r)); }); });
  }
};

// ---- int8 -----------------------------------------------------------------------------------------------------------------
template <class Vec, int R, int NB, bool Later>
HR_INLINE void dot_bytes(Walk<R, NB, Later>& walk, int count, Grid<typename Vec::I, 2 * NB, R>& acc) {
  dot_rows<Vec>(walk, count, acc, [](const uint8_t* p) __attribute__((always_inline)) { return Vec::load_row_u8(p); },
                [](auto sum, auto w, uint32_t a) __attribute__((always_inline)) {
                  return Vec::dot_u8(sum, w, static_cast<int32_t>(a));
                });
}

// One scale per column and one per token.
template <class Vec>
struct MicroI8 {
  static constexpr int kRows = Vec::kRowsInt;
  template <int R, int NB, bool Later>
  HR_INLINE static void run(const Operands& o, float* s) {
    Grid<typename Vec::I, 2 * NB, R> acc;
    unroll<R>([&] HR_EACH(r) {
      const auto start = Vec::template start_u8<false>(load_as<int32_t>(o.a + r * o.row_bytes + o.meta + 4));
      unroll<2 * NB>([&] HR_EACH(t) { acc(t, r) = start; });
    });
    Walk<R, NB, Later> walk(o);
    for (int64_t step = 0; step < o.steps; ++step) {
      dot_bytes<Vec>(walk, 16, acc);
      walk.move(1024, 0);
    }
    unroll<2 * NB>([&] HR_EACH(t) {
      const auto scale = Vec::load(reinterpret_cast<const float*>(walk.block_of(t)) + t % 2 * 16);
      unroll<R>([&] HR_EACH(r) {
        const auto both = Vec::mul(scale, Vec::set(load_as<float>(o.a + r * o.row_bytes + o.meta)));
        Vec::store(s + (r * 2 * NB + t) * 16, Vec::mul(Vec::from_int(acc(t, r)), both));
      });
    });
  }
};

// ---- groups -----------------------------------------------------------------------------------------------------------------
// `meta` points at the activation scales of the group that is computed, in every record.

// Where the integer sums of a group of bytes start.
template <class Vec, bool Asym, int T, int R>
HR_INLINE void start_group(const Operands& o, const Rows<R>& meta, Grid<typename Vec::I, T, R>& acc) {
  unroll<R>([&] HR_EACH(r) {
    const auto start = Vec::template start_u8<Asym>(load_as<int32_t>(meta.at(r) + o.groups * 4));
    unroll<T>([&] HR_EACH(t) { acc(t, r) = start; });
  });
}

// Likewise of nibbles: every ISA multiplies them as they are stored, so only symmetric ones have a zero to take off.
template <class Vec, bool Asym>
HR_INLINE typename Vec::I start_nibbles(const uint8_t* offset) {
  return Asym ? Vec::zero_int() : Vec::set_int(load_as<int32_t>(offset));
}

// Add a group's integer sums of tile t, scaled, to the float sums. The one order of float operations of grouped formats.
template <class Vec, bool Asym, int T, int R, int I, int J, int K>
HR_INLINE void add_group(const Operands& o, const uint8_t* scales, int64_t bias_at, const Rows<R>& meta, Int<J> t,
                         Grid<typename Vec::I, I, R>& acc, Int<K> place, float* s) {
  const uint8_t* p = scales + t % 2 * 32;
  const auto scale = Vec::load_half(p);
  const auto bias = Asym ? Vec::load_half(p + bias_at) : Vec::zero();
  s = opaque(s);
  unroll<R>([&] HR_EACH(r) {
    float* at = s + (r * T + t) * 16;
    const auto both = Vec::mul(scale, Vec::set(load_as<float>(meta.at(r))));
    auto sum = Vec::fma(Vec::from_int(acc(place, r)), both, Vec::load(at));
    if constexpr (Asym) sum = Vec::fma(bias, Vec::set(load_as<float>(meta.at(r) + o.groups * 8)), sum);
    Vec::store(at, sum);
  });
}

// int8. G = 32, or 0: a step is one group of any number of 64-k parts.
template <class Vec, int G, bool Asym>
struct MicroI8G {
  static constexpr int kRows = Vec::kRowsGroup8;
  template <int R, int NB, bool Later>
  HR_INLINE static void run(const Operands& o, float* s) {
    clear_sums<Vec, R, 2 * NB>(s);
    Walk<R, NB, Later> walk(o);
    Rows<R> meta(o.a + o.meta, o.row_bytes);
    const int64_t parts = o.data_bytes / 2048, scale_bytes = o.step_bytes - o.data_bytes;
    Grid<typename Vec::I, 2 * NB, R> acc;
    // Scales of the group done: `at` bytes on from the walk's place.
    const auto end_group = [&](int64_t at) __attribute__((always_inline)) {
      unroll<2 * NB>([&] HR_EACH(t) {
        add_group<Vec, Asym, 2 * NB>(o, walk.block_of(t) + at, G == 32 ? 128 : 64, meta, t, acc, t, s);
      });
      meta.move(4);
    };
    for (int64_t step = 0; step < o.steps; ++step) {
      start_group<Vec, Asym, 2 * NB>(o, meta, acc);
      if constexpr (G == 32) {
        dot_bytes<Vec>(walk, 8, acc);
        end_group(1536);
        start_group<Vec, Asym, 2 * NB>(o, meta, acc);
        dot_bytes<Vec>(walk, 8, acc);
        walk.move(1024, 0);
        end_group(64);
      } else {
        for (int64_t part = 0; part < parts; ++part) {
          dot_bytes<Vec>(walk, 16, acc);
          walk.move(1024, 0);
        }
        end_group(0);
      }
      walk.move(scale_bytes, 0);
    }
  }
};

// int4. A row of 64 bytes gives two operands: low nibbles (k 0..31 of the part) and high nibbles (k 32..63). Few rows read
// each line of weights once, from memory, and take both operands. Many rows take the low nibbles of both tiles and then the
// high ones: the lines are in L1 by then, an activation serves two products, and twice the rows fit the registers. The
// sums are the same either way. G = 32, or 0: a step is one group of any number of 64-k parts. Groups of 64 and more are not
// what files hold: fewer row counts are worth compiling for them.
template <class Vec, int G, bool Asym>
struct MicroI4G {
  static constexpr int kRows = G == 32 ? Vec::kRowsGroup4 : kFewRows<Vec>;
  static constexpr int kGroups = G == 32 ? 2 : 1;

  HR_INLINE static int64_t parts(const Operands& o) { return G == 32 ? 1 : o.data_bytes / 1024; }

  template <int R, int NB, bool Later>
  HR_INLINE static void run(const Operands& o, float* s) {
    clear_sums<Vec, R, 2 * NB>(s);
    Walk<R, NB, Later> walk(o);
    Rows<R> meta(o.a + o.meta, o.row_bytes);
    for (int64_t step = 0; step < o.steps; ++step) {
      if constexpr (NB == 1 && R > Vec::kRowsTwoStreams) {
        add_step_by_nibble(o, walk, meta, s);
      } else {
        unroll<2 * NB>([&] HR_EACH(t) { add_step_of_tile(o, walk, meta, t, s); });
      }
      walk.move(o.step_bytes, parts(o) * 64);
      meta.move(kGroups * 4);
    }
  }

  // fn(byte offsets of weights and of activations) for each 4 tile rows of a step.
  template <bool WrittenOut, class Fn>
  HR_INLINE static void each_quad(const Operands& o, Fn&& fn) {
    if constexpr (WrittenOut) {
      fn(0, 0);
      fn(256, 16);
    } else {
      const int64_t quads = parts(o) * 2;
HR_NO_UNROLL
      for (int64_t quad = 0; quad < quads; ++quad) fn(quad / 2 * 1024 + quad % 2 * 256, quad / 2 * 64 + quad % 2 * 16);
    }
  }

  template <int R, bool Later>
  HR_INLINE static void add_step_by_nibble(const Operands& o, Walk<R, 1, Later>& walk, Rows<R> meta, float* s) {
    Grid<typename Vec::I, 2, R> acc;  // of both tiles
    constexpr Int<0> left;
    constexpr Int<1> right;
    unroll<2>([&] HR_EACH(high) {
      if constexpr (high == 0 || kGroups == 2) {
        unroll<R>([&] HR_EACH(r) {
          const auto start = start_nibbles<Vec, Asym>(meta.at(r) + o.groups * 4);
          unroll<2>([&] HR_EACH(t) { acc(t, r) = start; });
        });
      }
      each_quad<G == 32>(o, [&](int64_t weights_at, int64_t acts_at) __attribute__((always_inline)) {
        each_row<Vec, 4>([&] HR_EACH(i) {
          walk.fetch.row();
          const uint8_t* p = walk.w.head + weights_at + i * 64;
          const auto both0 = Vec::load_row(p), both1 = Vec::load_row(p + 512);
          const auto w0 = high ? Vec::high_nibbles(both0) : Vec::low_nibbles(both0);
          const auto w1 = high ? Vec::high_nibbles(both1) : Vec::low_nibbles(both1);
          unroll<R>([&] HR_EACH(r) {
            const int32_t a = load_as<int32_t>(walk.rows.at(r) + acts_at + high * 32 + i * 4);
            acc(left, r) = Vec::dot_u4(acc(left, r), w0, a);
            acc(right, r) = Vec::dot_u4(acc(right, r), w1, a);
          });
        });
      });
      if constexpr (high == 1 || kGroups == 2) {
        const uint8_t* scales = walk.w.head + o.data_bytes + (kGroups == 2 ? high * 64 : 0);
        add_group<Vec, Asym, 2>(o, scales, kGroups * 64, meta, left, acc, left, s);
        add_group<Vec, Asym, 2>(o, scales, kGroups * 64, meta, right, acc, right, s);
        meta.move(4);
      }
    });
  }

  // One step of tile T.
  template <int R, int NB, bool Later, int T>
  HR_INLINE static void add_step_of_tile(const Operands& o, Walk<R, NB, Later>& walk, Rows<R> meta, Int<T> t, float* s) {
    Grid<typename Vec::I, 2, R> acc;  // of low nibbles, of high nibbles
    constexpr Int<0> low;
    constexpr Int<1> high;
    unroll<R>([&] HR_EACH(r) {
      const uint8_t* offset = meta.at(r) + o.groups * 4;
      acc(low, r) = start_nibbles<Vec, Asym>(offset);
      acc(high, r) = kGroups == 1 ? Vec::zero_int() : start_nibbles<Vec, Asym>(offset + 4);
    });
    each_quad<false>(o, [&](int64_t weights_at, int64_t acts_at) __attribute__((always_inline)) {
      each_row<Vec, 4>([&] HR_EACH(i) {
        walk.fetch.row();
        const uint8_t* p = walk.block_of(t) + T % 2 * 512 + weights_at + i * 64;
        const auto both = Vec::load_row(p);
        walk.fetch.line(p);
        const auto w0 = Vec::low_nibbles(both), w1 = Vec::high_nibbles(both);
        unroll<R>([&] HR_EACH(r) {
          const uint8_t* a = walk.rows.at(r) + acts_at + i * 4;
          acc(low, r) = Vec::dot_u4(acc(low, r), w0, load_as<int32_t>(a));
          acc(high, r) = Vec::dot_u4(acc(high, r), w1, load_as<int32_t>(a + 32));
        });
      });
    });
    const uint8_t* scales = walk.block_of(t) + o.data_bytes;
    if constexpr (kGroups == 1) unroll<R>([&] HR_EACH(r) { acc(low, r) = Vec::add_int(acc(low, r), acc(high, r)); });
    add_group<Vec, Asym, 2 * NB>(o, scales, kGroups * 64, meta, t, acc, low, s);
    if constexpr (kGroups == 2) {
      meta.move(4);
      add_group<Vec, Asym, 2 * NB>(o, scales + 64, kGroups * 64, meta, t, acc, high, s);
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
  return {prepare_share<Vec>, linear_share<Vec, Bf>, spin_int8<Vec>, kInt8Chains<Vec>,
          spin_bf16<Bf>,      kBf16Chains<Bf>,       read_memory<Vec>};
}

}  // namespace
}  // namespace headrace
