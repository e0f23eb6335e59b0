// Draw tokens from logits, token for token like headrace/sampling/sampler.py, which is the specification.
//
// A row is drawn by one thread from its own logits, so neither the batch nor the thread count changes a sample. Only as many
// ids are ranked as the draw needs.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace headrace {

constexpr int kMaxTop = 64;  // alternatives per position at most

// How one sequence samples. Mirrored by ops/native/step.py (SAMPLING).
struct Sampling {
  double temperature, top_p, min_p, typical_p;
  uint64_t seed;
  float repetition, frequency, presence;
  int32_t top_k;
  int32_t num_top;    // -1: no log probabilities
  int32_t num_bias;   // entries of the bias arrays from bias_at
  int64_t bias_at;
};

struct SampleContext {
  const Sampling* sampling;
  const int32_t* bias_ids;
  const float* bias_values;
  const int32_t* history;  // all tokens so far; null without penalties
  int64_t num_history, prompt_len;
  const int32_t* banned;
  int64_t num_banned;
  uint32_t num_output;
};

enum SampleStatus : int32_t { kSampled = 0, kNotFinite = 1, kNothingLeft = 2, kUnknownToken = 3 };

// One drawn or scored position. `top` holds num_top entries, best first.
struct SampleOut {
  int32_t token;
  int32_t status;
  double logprob;
  float peak;  // the largest logit, for the message of a failure
  int32_t num_top;
  int32_t top_ids[kMaxTop];
  double top_logprobs[kMaxTop];
};

// Scratch of one thread.
struct SampleScratch {
  int32_t* ids;     // [max(V, longest history)]
  double* weights;  // [3 V]: weights, an order, a copy of the logits
};

// `y` [V] may be changed. `scan` is what Kernels::scan_logits found in it.
void sample_row(float* y, int64_t vocab, const LogitScan& scan, const SampleContext& context, SampleScratch scratch,
                SampleOut* out);

// Log probability of a known next token and the num_top best.
void score_row(const float* y, int64_t vocab, const LogitScan& scan, int32_t token, int32_t num_top, SampleScratch scratch,
               SampleOut* out);

}  // namespace headrace
