// What happens to a finished sum before it leaves the registers: bias, activation, store. Part of gemm_impl.h.
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

template <class Vec>
typename Vec::F activate(Activation activation, typename Vec::F x) {
  switch (activation) {
    case Activation::Silu:
      return Vec::mul(x, sigmoid<Vec>(x));
    case Activation::GeluTanh: {  // x (1 + tanh z) / 2 = x sigmoid(2 z), z = sqrt(2/pi) (x + 0.044715 x^3)
      const auto inner = Vec::fma(Vec::mul(x, x), Vec::set(0.044715f), Vec::set(1.0f));
      return Vec::mul(x, sigmoid<Vec>(Vec::mul(Vec::mul(x, inner), Vec::set(1.59576912f))));
    }
    case Activation::Gelu: {
      const auto half = Vec::mul(x, Vec::set(0.5f));
      return Vec::fma(half, erf_of<Vec>(Vec::mul(x, Vec::set(0.70710678f))), half);
    }
    case Activation::Relu2: {
      const auto positive = Vec::max(Vec::zero(), x);  // keeps NaN
      return Vec::mul(positive, positive);
    }
  }
  return x;
}

// Put one row's two tiles of block `block` where they belong. A call, not inlined: it is rare next to a walk over K, and
// every micro-kernel would carry a copy.
template <class Vec>
HR_NOINLINE void finish(const LinearArgs& args, int64_t block, int64_t row, typename Vec::F left, typename Vec::F right) {
  const int64_t column = block * kBlockColumns;
  if (args.bias != nullptr) {
    const int64_t columns = packed_columns(args.w->n, args.w->interleaved) - column;
    left = Vec::add(left, Vec::load_some(args.bias + column, columns));
    right = Vec::add(right, Vec::load_some(args.bias + column + kTileColumns, columns - kTileColumns));
  }
  float* y = args.y + row * args.ldy;
  if (args.epilogue == Epilogue::Glu) {
    const int64_t out = block * kTileColumns;
    Vec::store_some(y + out, Vec::mul(activate<Vec>(args.activation, left), right), args.w->n / 2 - out);
    return;
  }
  const int64_t columns = args.w->n - column;
  if (args.epilogue == Epilogue::Add) {
    left = Vec::add(left, Vec::load_some(y + column, columns));
    right = Vec::add(right, Vec::load_some(y + column + kTileColumns, columns - kTileColumns));
  }
  Vec::store_some(y + column, left, columns);
  Vec::store_some(y + column + kTileColumns, right, columns - kTileColumns);
}

}  // namespace
}  // namespace headrace
