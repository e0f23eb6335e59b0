// The limits a linear layer is measured against: how fast this ISA multiplies int8 and bf16 with everything in registers,
// and how fast it reads memory that nothing else is done with. Part of gemm_impl.h.
#pragma once

namespace headrace {
namespace {

// Independent sums, as many as a micro-kernel holds: what one dot waits for never shows.
template <class Vec>
constexpr int kInt8Chains = Vec::kRowsInt * 2;
template <class Vec>
constexpr int kBf16Chains = Vec::kRowsFloat * 2;

// A dot per chain and iteration, each 16 columns x 4 products. Returns a sum that depends on all.
template <class Vec>
int32_t spin_int8(int64_t iterations, const uint8_t* row) {
  constexpr int kChains = kInt8Chains<Vec>;
  Grid<typename Vec::I, 1, kChains> acc;
  constexpr Int<0> zero;
  unroll<kChains>([&] HR_EACH(i) { acc(zero, i) = Vec::set_int(i); });
  const auto w = Vec::load_row_u8(row);
  const int32_t a = load_as<int32_t>(row);
  for (int64_t n = 0; n < iterations; ++n) {
    unroll<kChains>([&] HR_EACH(i) { acc(zero, i) = Vec::dot_u8(acc(zero, i), w, a); });
  }
  auto total = acc(zero, zero);
  unroll<kChains - 1>([&] HR_EACH(i) { total = Vec::add_int(total, acc(zero, Int<i + 1>{})); });
  return Vec::reduce_add(total);
}

// The same of bf16, each 16 columns x 2 products.
template <class Vec>
int32_t spin_bf16(int64_t iterations, const uint8_t* row) {
  constexpr int kChains = kBf16Chains<Vec>;
  Grid<typename Vec::F, 1, kChains> acc;
  constexpr Int<0> zero;
  unroll<kChains>([&] HR_EACH(i) { acc(zero, i) = Vec::set(static_cast<float>(i)); });
  const auto w = Vec::load_row(row);
  const uint32_t a = load_as<uint32_t>(row);
  for (int64_t n = 0; n < iterations; ++n) {
    unroll<kChains>([&] HR_EACH(i) { acc(zero, i) = Vec::dot_bf16(acc(zero, i), w, a); });
  }
  auto total = acc(zero, zero);
  unroll<kChains - 1>([&] HR_EACH(i) { total = Vec::add(total, acc(zero, Int<i + 1>{})); });
  alignas(64) float lanes[16];
  Vec::store(lanes, total);
  return static_cast<int32_t>(lanes[0]);
}

// Reads `bytes` (a multiple of 256) as two prefetched streams.
template <class Vec>
int32_t read_memory(const uint8_t* p, int64_t bytes) {
  const uint8_t* q = p + bytes / 2;
  typename Vec::I acc[4] = {Vec::zero_int(), Vec::zero_int(), Vec::zero_int(), Vec::zero_int()};
  for (int64_t i = 0; i < bytes / 2; i += 128) {
    unroll<2>([&] HR_EACH(j) {
      prefetch(p + i + j * 64 + kAheadTwoStreams);
      prefetch(q + i + j * 64 + kAheadTwoStreams);
      acc[j] = Vec::add_int(acc[j], Vec::load_ints(p + i + j * 64));
      acc[2 + j] = Vec::add_int(acc[2 + j], Vec::load_ints(q + i + j * 64));
    });
  }
  return Vec::reduce_add(Vec::add_int(Vec::add_int(acc[0], acc[1]), Vec::add_int(acc[2], acc[3])));
}

}  // namespace
}  // namespace headrace
