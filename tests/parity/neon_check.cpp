// The NEON kernels of linear layers against the generic ones and a plain product, through the C ABI.
// Built for aarch64 by test_neon.py, which runs it under an emulator. Prints one line per difference; exit status 1 if any.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "linear.h"

using namespace headrace;

extern "C" {
int32_t hr_set_isa(const char*);
void* hr_pool_create(int32_t, const int32_t*);
int64_t hr_packed_bytes(const PackedWeight*);
int64_t hr_packed_blocks(const PackedWeight*);
int64_t hr_act_bytes(const PackedWeight*, int64_t);
int32_t hr_pack(void*, const PackedWeight*, int32_t, const void*, const void*, int64_t, int64_t);
int32_t hr_unpack(const PackedWeight*, int64_t, int64_t, float*);
int32_t hr_linear(void*, const PackedWeight*, const float*, int64_t, int64_t, void*, float*, int64_t, const float*, int32_t,
                  int32_t, int32_t);
}

namespace {

constexpr float kUntouched = 12345.0f;
constexpr int64_t kMargin = 3;  // numbers behind each row of outputs that must stay as they are

struct Case {
  WeightFormat format;
  int group, asymmetric;
};

int checks = 0, differences = 0;

float random_number() {
  static uint32_t state = 1;
  state = state * 1664525u + 1013904223u;
  return static_cast<int32_t>(state) * 0x1p-31f;
}

std::vector<float> random_numbers(int64_t count) {
  std::vector<float> numbers(count);
  for (float& x : numbers) x = random_number();
  return numbers;
}

void* aligned(int64_t bytes) { return aligned_alloc(64, (bytes + 127) / 64 * 64); }

void complain(const char* what, const Case& c, int64_t n, int64_t k, int64_t m) {
  ++differences;
  printf("%s: format %d group %d asymmetric %d n %ld k %ld rows %ld\n", what, static_cast<int>(c.format), c.group,
         c.asymmetric, static_cast<long>(n), static_cast<long>(k), static_cast<long>(m));
}

struct Run {
  std::vector<float> y;
  std::vector<uint8_t> acts;  // prepared
};

struct Layer {
  void* pool;
  PackedWeight weight;
  int64_t outputs;

  Run run(const char* isa, const std::vector<float>& x, int64_t m, const float* bias, int epilogue, int activation) const {
    if (hr_set_isa(isa) != 0) {
      printf("no instruction set '%s' here\n", isa);
      exit(2);
    }
    const int64_t act_bytes = hr_act_bytes(&weight, m), ldy = outputs + kMargin;
    void* acts = aligned(act_bytes);
    memset(acts, 0, act_bytes);
    Run result{std::vector<float>(m * ldy, kUntouched), {}};
    const int code = hr_linear(pool, &weight, x.data(), weight.k, m, acts, result.y.data(), ldy, bias, epilogue, activation, 1);
    if (code != 0) exit(3);
    result.acts.assign(static_cast<uint8_t*>(acts), static_cast<uint8_t*>(acts) + act_bytes);
    free(acts);
    return result;
  }
};

// Both agree, bit for bit where only integers are summed, and neither writes behind a row.
void compare(const Case& c, const Layer& layer, const std::vector<float>& x, int64_t m, const float* bias, int epilogue,
             int activation, Run* out) {
  const Run one = layer.run("generic", x, m, bias, epilogue, activation);
  *out = layer.run("neon", x, m, bias, epilogue, activation);
  ++checks;
  const int64_t n = layer.weight.n, k = layer.weight.k, ldy = layer.outputs + kMargin;
  if (one.acts != out->acts) complain("prepared activations differ", c, n, k, m);
  double size = 0, error = 0;
  for (int64_t i = 0; i < m * ldy; ++i) {
    if (i % ldy >= layer.outputs) {
      if (out->y[i] != kUntouched) complain("written behind a row", c, n, k, m);
      continue;
    }
    size = fmax(size, fabs(one.y[i]));
    const double off = fabs(one.y[i] - out->y[i]);
    error = off <= error ? error : off;  // takes a NaN
  }
  const double limit = c.format == WeightFormat::I8 && epilogue == 0 && bias == nullptr ? 0 : 2e-5 * size;
  if (!(error <= limit)) complain("outputs differ", c, n, k, m);
}

// What was packed times what was given, but for the rounding of activations: at most 1/254 of a row's largest number,
// 8 times that where a rotation has mixed 64 of them.
void check_product(const Case& c, const Layer& layer, const std::vector<float>& x, int64_t m, const Run& found) {
  const int64_t n = layer.weight.n, k = layer.weight.k, ldy = n + kMargin;
  std::vector<float> w(n * k);
  if (hr_unpack(&layer.weight, 0, n, w.data()) != 0) exit(3);
  for (int64_t row = 0; row < m; ++row) {
    for (int64_t column = 0; column < n; ++column) {
      double exact = 0, weights = 0;
      for (int64_t i = 0; i < k; ++i) {
        exact += static_cast<double>(x[row * k + i]) * w[column * k + i];
        weights += fabs(w[column * k + i]);
      }
      const double rounding = (c.format == WeightFormat::I8R ? 8 : 1.02) / 254 * weights + 1e-5;
      if (!(fabs(exact - found.y[row * ldy + column]) <= rounding)) return complain("not the product", c, n, k, m);
    }
  }
}

Layer pack(void* pool, const Case& c, int64_t n, int64_t k, bool interleaved) {
  PackedWeight weight{c.format, c.group, c.asymmetric, interleaved, n, k, nullptr};
  weight.base = aligned(hr_packed_bytes(&weight));
  const std::vector<float> rows = random_numbers(n * k);
  const float* up = interleaved ? rows.data() + n / 2 * k : nullptr;
  if (hr_pack(pool, &weight, 0, rows.data(), up, 0, hr_packed_blocks(&weight)) != 0) exit(3);
  return {pool, weight, interleaved ? n / 2 : n};
}

}  // namespace

int main() {
  void* pool = hr_pool_create(2, nullptr);
  std::vector<Case> cases = {{WeightFormat::F32, 0, 0}, {WeightFormat::BF16, 0, 0}, {WeightFormat::I8, 0, 0}};
  for (int group : {64, 192, 256}) cases.push_back({WeightFormat::I8R, group, 0});
  for (int group : {32, 64, 128}) {
    for (int asymmetric : {0, 1}) {
      cases.push_back({WeightFormat::I8G, group, asymmetric});
      cases.push_back({WeightFormat::I4G, group, asymmetric});
    }
  }
  const int64_t sizes[][2] = {{1, 1}, {33, 100}, {70, 257}, {129, 576}};
  Run found;
  for (const Case& c : cases) {
    for (const auto& [n, k] : sizes) {
      const Layer layer = pack(pool, c, n, k, false);
      const std::vector<float> x = random_numbers(33 * k), bias = random_numbers(n + 32);
      for (int64_t m : {1, 2, 3, 4, 5, 8, 15, 16, 17, 33}) {
        compare(c, layer, x, m, nullptr, 0, 0, &found);
        if (k < 300 && (m == 1 || m == 5)) check_product(c, layer, x, m, found);
      }
      compare(c, layer, x, 6, bias.data(), 0, 0, &found);
      free(const_cast<void*>(layer.weight.base));
    }
    const Layer gated = pack(pool, c, 70, 100, true);
    const std::vector<float> x = random_numbers(500);
    for (int activation : {0, 1, 2, 3}) compare(c, gated, x, 5, nullptr, 2, activation, &found);
  }
  printf("%d checks, %d differences\n", checks, differences);
  fflush(stdout);
  _Exit(differences != 0);
}
