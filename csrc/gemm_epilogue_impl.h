// What happens to finished sums: bias, activation, store. Part of gemm_impl.h.
#pragma once

namespace headrace {
namespace {

// e^x, relative error below 3e-7 on [-87, 88]; clamped outside. Polynomial: Taylor of e^r on |r| <= ln2/2, degree 7.
template <class Vec>
HR_INLINE typename Vec::F exp_of(typename Vec::F x) {
  x = Vec::min(Vec::max(x, Vec::set(-87.0f)), Vec::set(88.0f));
  const auto n = Vec::round_int(Vec::mul(x, Vec::set(1.44269504f)));
  const auto nf = Vec::from_int(n);
  auto r = Vec::fma(nf, Vec::set(-0.693359375f), x);  // ln 2 in two parts: the first has few bits, the product is exact
  r = Vec::fma(nf, Vec::set(2.12194440e-4f), r);
  auto p = Vec::set(1.0f / 5040);
  for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = Vec::fma(p, r, Vec::set(c));
  return Vec::mul(p, Vec::power_of_two(n));
}

// erf by Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7 plus rounding.
template <class Vec>
HR_INLINE typename Vec::F erf_of(typename Vec::F x) {
  const auto a = Vec::abs(x);
  const auto t = Vec::div(Vec::set(1.0f), Vec::fma(a, Vec::set(0.3275911f), Vec::set(1.0f)));
  auto p = Vec::set(1.061405429f);
  for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = Vec::fma(p, t, Vec::set(c));
  const auto tail = Vec::mul(Vec::mul(p, t), exp_of<Vec>(Vec::mul(Vec::mul(a, a), Vec::set(-1.0f))));
  return Vec::copy_sign(Vec::sub(Vec::set(1.0f), tail), x);
}

template <class Vec>
HR_INLINE typename Vec::F sigmoid(typename Vec::F x) {
  const auto one = Vec::set(1.0f);
  return Vec::div(one, Vec::add(one, exp_of<Vec>(Vec::mul(x, Vec::set(-1.0f)))));
}

template <class Vec, Activation Kind>
HR_INLINE typename Vec::F activate(typename Vec::F x) {
  if constexpr (Kind == Activation::Silu) {
    return Vec::mul(x, sigmoid<Vec>(x));
  } else if constexpr (Kind == Activation::GeluTanh) {  // x (1 + tanh z) / 2 = x sigmoid(2 z), z = sqrt(2/pi) (x + 0.044715 x^3)
    const auto inner = Vec::fma(Vec::mul(x, x), Vec::set(0.044715f), Vec::set(1.0f));
    return Vec::mul(x, sigmoid<Vec>(Vec::mul(Vec::mul(x, inner), Vec::set(1.59576912f))));
  } else if constexpr (Kind == Activation::Gelu) {
    const auto half = Vec::mul(x, Vec::set(0.5f));
    return Vec::fma(half, erf_of<Vec>(Vec::mul(x, Vec::set(0.70710678f))), half);
  } else {
    const auto positive = Vec::max(Vec::zero(), x);  // keeps NaN
    return Vec::mul(positive, positive);
  }
}

// Sums of one block for some rows: row i has 16 + 16 columns at sums + i * stride.
struct BlockSums {
  int64_t block, row;
  int rows;
  float* sums;
  int64_t stride;
};

template <class Vec, Activation Kind>
HR_NOINLINE void finish_gated(const LinearArgs& args, const BlockSums& of) {
  const int64_t out = of.block * kTileColumns, columns = args.w->n / 2 - out;
  for (int i = 0; i < of.rows; ++i) {
    const float* s = of.sums + i * of.stride;
    const auto gate = activate<Vec, Kind>(Vec::load(s));
    Vec::store_some(args.y + (of.row + i) * args.ldy + out, Vec::mul(gate, Vec::load(s + kTileColumns)), columns);
  }
}

template <class Vec, bool Adds>
HR_INLINE void finish_plain(const LinearArgs& args, const BlockSums& of) {
  const int64_t column = of.block * kBlockColumns, columns = args.w->n - column;
  for (int i = 0; i < of.rows; ++i) {
    const float* s = of.sums + i * of.stride;
    float* y = args.y + (of.row + i) * args.ldy + column;
    auto left = Vec::load(s), right = Vec::load(s + kTileColumns);
    if constexpr (Adds) {
      left = Vec::add(left, Vec::load_some(y, columns));
      right = Vec::add(right, Vec::load_some(y + kTileColumns, columns - kTileColumns));
    }
    Vec::store_some(y, left, columns);
    Vec::store_some(y + kTileColumns, right, columns - kTileColumns);
  }
}

template <class Vec>
HR_NOINLINE void add_bias(const LinearArgs& args, const BlockSums& of) {
  const int64_t column = of.block * kBlockColumns;
  const int64_t columns = packed_columns(args.w->n, args.w->interleaved) - column;
  const auto left = Vec::load_some(args.bias + column, columns);
  const auto right = Vec::load_some(args.bias + column + kTileColumns, columns - kTileColumns);
  for (int i = 0; i < of.rows; ++i) {
    float* s = of.sums + i * of.stride;
    Vec::store(s, Vec::add(Vec::load(s), left));
    Vec::store(s + kTileColumns, Vec::add(Vec::load(s + kTileColumns), right));
  }
}

// Put the sums where they belong.
template <class Vec>
HR_NOINLINE void finish(const LinearArgs& args, int64_t block, int64_t row, int rows, float* sums, int64_t stride) {
  const BlockSums of{block, row, rows, sums, stride};
  if (args.bias != nullptr) add_bias<Vec>(args, of);
  switch (args.epilogue) {
    case Epilogue::Store:
      return finish_plain<Vec, false>(args, of);
    case Epilogue::Add:
      return finish_plain<Vec, true>(args, of);
    case Epilogue::Glu:
      switch (args.activation) {
        case Activation::Silu:
          return finish_gated<Vec, Activation::Silu>(args, of);
        case Activation::GeluTanh:
          return finish_gated<Vec, Activation::GeluTanh>(args, of);
        case Activation::Gelu:
          return finish_gated<Vec, Activation::Gelu>(args, of);
        case Activation::Relu2:
          return finish_gated<Vec, Activation::Relu2>(args, of);
      }
  }
}

}  // namespace
}  // namespace headrace
