// Penalties, filters and the draw. See sample.h for who calls and headrace/sampling/sampler.py for the rules by number.
#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "philox.h"

namespace headrace {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Ids of one row in the order (logit falling, id rising), ranked only as far as asked.
class Ranking {
 public:
  Ranking(const float* y, int64_t vocab, float best, int32_t* ids) : y_(y), vocab_(vocab), best_(best), ids_(ids) {}

  // Make the first `count` ids exact; returns how many there are (fewer only at the end of the vocabulary).
  int64_t extend(int64_t count) {
    count = std::min(count, vocab_);
    if (count <= ranked_) return count;
    gather(count);
    const auto before = [y = y_](int32_t a, int32_t b) { return y[a] > y[b] || (y[a] == y[b] && a < b); };
    int32_t* first = ids_ + ranked_;
    if (count < held_) std::nth_element(first, ids_ + count, ids_ + held_, before);
    std::sort(first, ids_ + count, before);
    ranked_ = count;
    return count;
  }

  const int32_t* ids() const { return ids_; }

 private:
  // Hold at least `count` ids that form a prefix of the ranking: everything above a threshold.
  void gather(int64_t count) {
    float reach = 4.0f;
    while (held_ < count && !is_whole_) {
      float threshold = best_ - reach;
      reach *= 2.0f;
      if (reach > 64.0f || 4 * count > vocab_) threshold = -kInf;
      is_whole_ = threshold == -kInf;
      held_ = kernels().collect_ge(y_, vocab_, threshold, ids_, vocab_);
      ranked_ = 0;  // collected in id order again
    }
  }

  const float* y_;
  int64_t vocab_;
  float best_;
  int32_t* ids_;
  int64_t held_ = 0, ranked_ = 0;
  bool is_whole_ = false;
};

double log_normalizer(const float* y, int64_t vocab, float best) {
  return static_cast<double>(best) + std::log(kernels().sum_exp(y, vocab, best, 1.0f));
}

void list_best(const float* y, int64_t vocab, float best, double shift, int32_t num_top, int32_t* ids, SampleOut* out) {
  Ranking ranking(y, vocab, best, ids);
  out->num_top = num_top > 0 ? static_cast<int32_t>(ranking.extend(std::min<int64_t>(num_top, kMaxTop))) : 0;
  for (int32_t i = 0; i < out->num_top; ++i) {
    out->top_ids[i] = ranking.ids()[i];
    out->top_logprobs[i] = static_cast<double>(y[ranking.ids()[i]]) - shift;
  }
}

// Rule 3. Returns whether anything may have changed.
bool adjust(float* y, const SampleContext& context, int32_t* ids) {
  const Sampling& s = *context.sampling;
  const bool penalizes = s.repetition != 1.0f || s.frequency != 0.0f || s.presence != 0.0f;
  if (penalizes && context.history) {
    if (s.repetition != 1.0f) {
      int32_t* end = std::copy(context.history, context.history + context.num_history, ids);
      std::sort(ids, end);
      end = std::unique(ids, end);
      for (int32_t* id = ids; id < end; ++id) y[*id] = y[*id] > 0 ? y[*id] / s.repetition : y[*id] * s.repetition;
    }
    int32_t* end = std::copy(context.history + context.prompt_len, context.history + context.num_history, ids);
    std::sort(ids, end);
    for (int32_t* id = ids; id < end;) {
      int32_t* next = std::upper_bound(id, end, *id);
      volatile float frequency = s.frequency * static_cast<float>(next - id);  // rounded before it is subtracted
      y[*id] -= frequency;
      y[*id] -= s.presence;
      id = next;
    }
  }
  for (int32_t i = 0; i < s.num_bias; ++i) y[context.bias_ids[s.bias_at + i]] += context.bias_values[s.bias_at + i];
  for (int64_t i = 0; i < context.num_banned; ++i) y[context.banned[i]] = -kInf;
  return (penalizes && context.history) || s.num_bias > 0 || context.num_banned > 0;
}

// Keep the typical ranks, in ranking order; returns how many.
int64_t keep_typical(int32_t* ids, double* weights, int64_t count, double typical_p, double* scratch) {
  double total = 0.0, entropy = 0.0;
  for (int64_t i = 0; i < count; ++i) total += weights[i];
  for (int64_t i = 0; i < count; ++i) {
    const double p = weights[i] / total;
    if (p > 0) entropy -= p * std::log(p);
  }
  // Order ranks by distance to the entropy, equals by rank: sort (distance, rank) pairs held in two arrays.
  int64_t* order = reinterpret_cast<int64_t*>(scratch);
  for (int64_t i = 0; i < count; ++i) order[i] = i;
  const auto distance = [&](int64_t i) { return std::abs(-std::log(weights[i] / total) - entropy); };
  std::sort(order, order + count, [&](int64_t a, int64_t b) {
    const double x = distance(a), y = distance(b);
    return x < y || (x == y && a < b);
  });
  double mass = 0.0;
  int64_t kept = 0;
  while (kept < count) {
    mass += weights[order[kept++]] / total;
    if (mass >= typical_p) break;
  }
  std::sort(order, order + kept);
  for (int64_t i = 0; i < kept; ++i) {
    ids[i] = ids[order[i]];
    weights[i] = weights[order[i]];
  }
  return kept;
}

// Rules 5 (top-p, min-p) and 6 over `count` ranked candidates. -1 when ids beyond them could matter (is_cut false).
int32_t decide(const int32_t* ids, const double* weights, int64_t count, bool is_cut, double total, const Sampling& s,
               double u) {
  double mass = total;
  if (is_cut) {
    mass = 0.0;
    for (int64_t i = 0; i < count; ++i) mass += weights[i];
  }
  if (s.top_p < 1.0) {
    const double wanted = s.top_p * mass;
    double running = 0.0;
    int64_t kept = 0;
    while (kept < count) {
      running += weights[kept++];
      if (running >= wanted) break;
    }
    if (running < wanted && !is_cut) return -1;
    count = kept;
    is_cut = true;
  }
  if (s.min_p > 0.0) {
    int64_t above = 0;
    while (above < count && weights[above] >= s.min_p * weights[0]) ++above;
    if (above == count && !is_cut) return -1;
    count = above;
    is_cut = true;
  }
  if (is_cut) {
    mass = 0.0;
    for (int64_t i = 0; i < count; ++i) mass += weights[i];
  }
  double running = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    running += weights[i];
    if (running > u * mass) return ids[i];
  }
  return is_cut ? ids[count - 1] : -1;
}

int32_t draw(const float* y, int64_t vocab, float best, const SampleContext& context, SampleScratch scratch) {
  const Sampling& s = *context.sampling;
  const double u = philox_uniform(s.seed, context.num_output);
  const double peak = static_cast<double>(best);
  Ranking ranking(y, vocab, best, scratch.ids);
  const auto weigh = [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i)
      scratch.weights[i] = std::exp((static_cast<double>(y[scratch.ids[i]]) - peak) / s.temperature);
  };
  if (s.top_k > 0 || s.typical_p < 1.0) {
    int64_t count = ranking.extend(s.top_k > 0 ? s.top_k : vocab);
    weigh(0, count);
    if (s.typical_p < 1.0) count = keep_typical(scratch.ids, scratch.weights, count, s.typical_p, scratch.weights + vocab);
    return decide(scratch.ids, scratch.weights, count, true, 0.0, s, u);
  }
  const double total = kernels().sum_exp(y, vocab, best, static_cast<float>(1.0 / s.temperature));
  for (int64_t size : {int64_t{48}, int64_t{512}}) {
    if (size >= vocab) break;
    weigh(0, ranking.extend(size));
    const int32_t token = decide(scratch.ids, scratch.weights, size, false, total, s, u);
    if (token >= 0) return token;
  }
  const int64_t count = ranking.extend(vocab);
  weigh(0, count);
  return decide(scratch.ids, scratch.weights, count, true, 0.0, s, u);
}

}  // namespace

void sample_row(float* y, int64_t vocab, const LogitScan& scan, const SampleContext& context, SampleScratch scratch,
                SampleOut* out) {
  const Sampling& s = *context.sampling;
  out->status = kSampled;
  out->peak = scan.best;
  out->num_top = 0;
  out->logprob = 0.0;
  out->token = scan.best_id;
  if (scan.num_bad > 0 || scan.best == -kInf) {
    out->status = kNotFinite;
    return;
  }
  double shift = 0.0;
  if (s.num_top >= 0) {
    shift = log_normalizer(y, vocab, scan.best);
    list_best(y, vocab, scan.best, shift, s.num_top, scratch.ids, out);
  }
  // Log probabilities are made of the raw logits: adjust a copy where both are wanted.
  float* z = y;
  const bool adjusts = s.num_bias > 0 || context.num_banned > 0 || context.history != nullptr;
  if (adjusts && s.num_top >= 0) {
    z = reinterpret_cast<float*>(scratch.weights + 2 * vocab);
    std::memcpy(z, y, static_cast<size_t>(vocab) * 4);
  }
  LogitScan now = scan;
  if (adjusts && adjust(z, context, scratch.ids)) now = kernels().scan_logits(z, vocab);
  if (now.best == -kInf) {
    out->status = kNothingLeft;
    return;
  }
  out->token = s.temperature == 0.0 ? now.best_id : draw(z, vocab, now.best, context, scratch);
  if (s.num_top >= 0) out->logprob = static_cast<double>(y[out->token]) - shift;
}

void score_row(const float* y, int64_t vocab, const LogitScan& scan, int32_t token, int32_t num_top, SampleScratch scratch,
               SampleOut* out) {
  out->status = scan.num_bad > 0 || scan.best == -kInf ? kNotFinite : kSampled;
  out->peak = scan.best;
  out->token = token;
  out->num_top = 0;
  out->logprob = 0.0;
  if (out->status != kSampled) return;
  const double shift = log_normalizer(y, vocab, scan.best);
  out->logprob = static_cast<double>(y[token]) - shift;
  list_best(y, vocab, scan.best, shift, num_top, scratch.ids, out);
}

}  // namespace headrace
