// Activations into records: copied, rounded to bf16, or quantized. Part of gemm_impl.h.
//
// Quantization of one row or group: amax = max |x|, at least 1e-30; q = rne(x * (127 / amax)); scale = amax / 127; in fp32,
// one rounding per operation, so every ISA and numpy agree bit for bit. A NaN or infinity makes the scale NaN: the output
// of that row shows it.
#pragma once

namespace headrace {
namespace {

// Quantize x[0..count) to q[0..padded), padded a multiple of 16 with zeros behind. Returns the scale, sets sum(q).
template <class Vec>
HR_INLINE float quantize(const float* x, int64_t count, int64_t padded, int8_t* q, int32_t* sum) {
  auto top = Vec::zero_int();
  for (int64_t k = 0; k < count; k += 16) top = Vec::max_int(top, Vec::abs_bits(Vec::load_some(x + k, count - k)));
  const int32_t bits = Vec::reduce_max(top);
  *sum = 0;
  if (bits >= 0x7F800000) {
    for (int64_t k = 0; k < padded; ++k) q[k] = 0;
    return __builtin_nanf("");
  }
  float amax;
  __builtin_memcpy(&amax, &bits, 4);
  if (amax < 1e-30f) amax = 1e-30f;
  const auto inverse = Vec::set(127.0f / amax);
  auto total = Vec::zero_int();
  for (int64_t k = 0; k < padded; k += 16) {
    const auto code = Vec::round_int(Vec::mul(Vec::load_some(x + k, count - k), inverse));
    total = Vec::add_int(total, code);
    Vec::store_bytes(q + k, code);
  }
  *sum = Vec::reduce_add(total);
  return amax / 127.0f;
}

template <class Vec>
void prepare_grouped(int64_t k, int32_t group, int32_t zero, const float* x, const ActLayout& layout, uint8_t* record) {
  int8_t* q = reinterpret_cast<int8_t*>(record);
  float* scale = reinterpret_cast<float*>(record + layout.meta);
  int32_t* offset = reinterpret_cast<int32_t*>(scale + layout.groups);
  float* scaled_sum = reinterpret_cast<float*>(offset + layout.groups);
  for (int64_t g = 0; g < layout.groups; ++g) {
    const int64_t left = k - g * group;
    int32_t sum = 0;
    scale[g] = quantize<Vec>(x + g * group, left < 0 ? 0 : left < group ? left : group, group, q + g * group, &sum);
    offset[g] = -zero * sum;
    scaled_sum[g] = scale[g] * static_cast<float>(sum);
  }
}

// to[0..64) = H x[0..count), zeros behind. The order of additions is the same for every ISA, see layout.h.
template <class Vec>
HR_INLINE void rotate(const float* x, int64_t count, float* to) {
  if constexpr (requires { Vec::rotate(x, to); }) {
    if (count >= kRotation) return Vec::rotate(x, to);
  }
  for (int64_t i = 0; i < kRotation; i += 16) Vec::store(to + i, Vec::load_some(x + i, count - i));
  rotate_64(to);
}

// As groups of int8, but each 64 k are rotated first. The codes are those of the rotated numbers; 1/8 goes to the scale.
template <class Vec>
void prepare_rotated(int64_t k, int32_t group, const float* x, const ActLayout& layout, uint8_t* record) {
  float* scale = reinterpret_cast<float*>(record + layout.meta);
  int32_t* offset = reinterpret_cast<int32_t*>(scale + layout.groups);
  alignas(64) float turned[kMostRotatedGroup];
  for (int64_t g = 0; g < layout.groups; ++g) {
    for (int64_t i = 0; i < group; i += kRotation) {
      const int64_t at = g * group + i;
      rotate<Vec>(x + at, k - at, turned + i);
    }
    int32_t sum = 0;
    scale[g] = quantize<Vec>(turned, group, group, reinterpret_cast<int8_t*>(record) + g * group, &sum) * kRotationScale;
    offset[g] = -128 * sum;
  }
}

template <class Vec>
void prepare_share(WeightFormat format, int64_t k, int32_t group, const float* x, int64_t ldx, int64_t m0, int64_t m1,
                   void* acts) {
  const ActLayout layout = act_layout(format, k, group);
  for (int64_t row = m0; row < m1; ++row) {
    const float* source = x + row * ldx;
    uint8_t* record = static_cast<uint8_t*>(acts) + row * layout.row_bytes;
    switch (format) {
      case WeightFormat::F32:
        for (int64_t i = 0; i < layout.k_padded; i += 16) {
          Vec::store(reinterpret_cast<float*>(record) + i, Vec::load_some(source + i, k - i));
        }
        break;
      case WeightFormat::BF16:
        for (int64_t i = 0; i < layout.k_padded; i += 16) Vec::store_bf16(record + i * 2, Vec::load_some(source + i, k - i));
        break;
      case WeightFormat::I8: {
        int32_t sum = 0;
        const float scale = quantize<Vec>(source, k, layout.k_padded, reinterpret_cast<int8_t*>(record), &sum);
        const int32_t offset = -128 * sum;
        __builtin_memcpy(record + layout.meta, &scale, 4);
        __builtin_memcpy(record + layout.meta + 4, &offset, 4);
        break;
      }
      case WeightFormat::I8G:
        prepare_grouped<Vec>(k, group, 128, source, layout, record);
        break;
      case WeightFormat::I4G:
        prepare_grouped<Vec>(k, group, 8, source, layout, record);
        break;
      case WeightFormat::I8R:
        prepare_rotated<Vec>(k, group, source, layout, record);
        break;
    }
  }
}

}  // namespace
}  // namespace headrace
