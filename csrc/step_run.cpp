// StepProgram::run: what every thread does with the regions. See step.h.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "pack.h"
#include "step.h"

namespace headrace {
namespace {

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// This thread's part of 0 … n-1.
struct Share {
  int64_t first, last;
  Share(int64_t n, int tid, int threads) : first(n * tid / threads), last(n * (tid + 1) / threads) {}
};

}  // namespace

StepStatus StepProgram::step(const StepIn& in) {
  const StepStatus status = begin(in);
  if (status != kStepDone) return status;
  pool_->run([](void* self, int tid, int) { static_cast<StepProgram*>(self)->run(tid); }, this);
  return kStepDone;
}

void StepProgram::run(int tid) {
  int64_t then = times && tid == 0 ? now_ns() : 0;
  const auto mark = [&](const Region& region) {
    if (!times || tid != 0) return;
    const int64_t now = now_ns();
    region_ns[static_cast<int>(region.kind)] += now - then;
    then = now;
  };
  // Without a logit to compute, nothing after the last KV write matters.
  const size_t end = selected_.empty() ? last_cache_region_ + 1 : first_head_region_;
  for (size_t i = 0; i < end; ++i) {
    if (!run_region(regions_[i], tid)) pool_->barrier();
    mark(regions_[i]);
  }
  const int64_t wanted = static_cast<int64_t>(logit_list_.size());
  for (int64_t first = 0; first < wanted; first += logit_rows_) {
    const LogitChunk chunk{first, std::min(logit_rows_, wanted - first)};
    for (size_t i = first_head_region_; i < regions_.size(); ++i) {
      run_head(regions_[i], chunk, tid);
      pool_->barrier();
      mark(regions_[i]);
    }
  }
}

// Returns whether the thread may go on without a barrier.
bool StepProgram::run_region(const Region& region, int tid) {
  const OpDesc& op = region.op;
  const int64_t rows = region.selected ? static_cast<int64_t>(selected_.size()) : in_.num_tokens;
  const bool own = region.repeats && rows <= kRepeatRows;
  switch (region.kind) {
    case RegionKind::Begin:
      begin_rows(region, tid);
      begin_fetches(region, tid);
      return false;
    case RegionKind::Norm:
      norm_rows(region, rows, own, tid);
      return own || region.runs_on;
    case RegionKind::Prepare: {
      const PackedWeight& w = desc_.weights[region.prepare_for];
      const Share share = own ? Share(rows, 0, 1) : Share(rows, tid, threads_);
      prepare_rows(w.format, w.k, w.group, slot(op.src), width(op.src), rows, share.first, share.last, acts_for(own, tid));
      return own;
    }
    case RegionKind::Linear: {
      LinearArgs args{};
      args.w = &desc_.weights[op.weight];
      args.acts = acts_for(own, tid);
      args.m = rows;
      args.y = slot(op.dst);
      args.ldy = width(op.dst);
      args.bias = op.bias >= 0 ? desc_.vectors[op.bias] : nullptr;
      args.epilogue = static_cast<Epilogue>(op.epilogue);
      args.activation = static_cast<Activation>(op.activation);
      args.fetches = &fetches_[static_cast<size_t>(tid)];
      linear(args, tid, threads_);
      return false;
    }
    case RegionKind::QkWrite: {
      const KvLayer& kv = layers_[op.layer];
      QkWriteArgs args{};
      args.src = slot(op.src);
      args.ld_src = width(op.src);
      args.dst = slot(op.dst);
      args.ld_dst = width(op.dst);
      args.q_norm = op.q_norm >= 0 ? desc_.vectors[op.q_norm] : nullptr;
      args.k_norm = op.k_norm >= 0 ? desc_.vectors[op.k_norm] : nullptr;
      args.eps = op.eps;
      if (op.rope >= 0) {
        args.cos = cos_[op.rope];
        args.sin = sin_[op.rope];
        args.half = ropes_[op.rope].half;
      }
      args.num_heads = op.num_heads;
      args.kv = &kv;
      args.slots = kv_slots_;
      const int32_t heads = op.num_heads + 2 * op.num_kv_heads;
      const Share share(rows * heads, tid, threads_);
      for (int64_t unit = share.first; unit < share.last;) {
        const int64_t token = unit / heads, stop = std::min(share.last, (token + 1) * heads);
        kernels().qk_write(args, token, static_cast<int32_t>(unit - token * heads), static_cast<int32_t>(stop - token * heads));
        unit = stop;
      }
      return false;
    }
    case RegionKind::Attention:
      attend(region, tid);
      begin_fetches(region, tid);
      return false;
    case RegionKind::Compact:
      if (static_cast<int64_t>(selected_.size()) == in_.num_tokens) return true;
      compact(tid);
      return false;
    default:
      return false;
  }
}

void StepProgram::attend(const Region& region, int tid) {
  const OpDesc& op = region.op;
  AttentionArgs args{};
  args.q = slot(op.src);
  args.ldq = width(op.src);
  args.out = slot(op.dst);
  args.ldo = width(op.dst);
  args.kv = &layers_[op.layer];
  args.group = op.num_heads / op.num_kv_heads;
  args.scale = op.scale;
  args.softcap = op.softcap;
  args.sink_logits = op.sinks >= 0 ? desc_.vectors[op.sinks] : nullptr;
  if (op.rope >= 0) {
    args.half = ropes_[op.rope].half;
    args.turn_cos = turn_cos_[op.rope];
    args.turn_sin = turn_sin_[op.rope];
  }
  const AttentionPlan& plan = plans_[region.plan];
  void* scratch = scratch_ + scratch_bytes_ * tid;
  for (int32_t i = plan.starts[tid]; i < plan.starts[tid + 1]; ++i) {
    AttentionItem item = plan.items[i];
    if (plan.places[i] >= 0) item.partial = partials_.data() + plan.places[i];
    kernels().attention(args, item, scratch);
  }
  if (plan.merges.empty()) return;
  pool_->barrier();
  for (size_t i = static_cast<size_t>(tid); i < plan.merges.size(); i += static_cast<size_t>(threads_)) {
    const AttentionMerge& merge = plan.merges[i];
    kernels().attention_merge(args, merge.item, partials_.data() + merge.at, merge.count, scratch);
  }
}

// What a thread will attend to next, from its first byte.
void StepProgram::begin_fetches(const Region& region, int tid) {
  KvFetches& fetches = fetches_[static_cast<size_t>(tid)];
  fetches.read = fetches.end = nullptr;
  fetches.left = 0;
  if (region.next_attention < 0) return;
  const Region& next = regions_[static_cast<size_t>(region.next_attention)];
  fetches.begin(layers_[next.op.layer], plans_[next.plan], tid);
}

// Embeds this thread's tokens and fills their rows of the rotation tables.
void StepProgram::begin_rows(const Region& region, int tid) {
  const OpDesc& op = region.op;
  const int64_t n = width(op.dst);
  const Share share(in_.num_tokens, tid, threads_);
  for (int64_t t = share.first; t < share.last; ++t) {
    float* row = slot(op.dst) + t * n;
    unpack_row(desc_.weights[op.weight], tokens_[t], row);
    if (op.scale != 1.0f) kernels().scale(row, n, op.scale);
    for (size_t r = 0; r < ropes_.size(); ++r) {
      const RopeDesc& rope = ropes_[r];
      const float pos = static_cast<float>(positions_[t]);
      for (int32_t i = 0; i < rope.half; ++i) {
        const float angle = pos * rope.inv_freq[i];
        cos_[r][t * rope.half + i] = std::cos(angle) * rope.scale;
        sin_[r][t * rope.half + i] = std::sin(angle) * rope.scale;
      }
      for (int32_t i = 0; turns_any_ && i < rope.half; ++i) {
        const float angle = static_cast<float>(turns_[t]) * rope.inv_freq[i];
        turn_cos_[r][t * rope.half + i] = std::cos(angle);
        turn_sin_[r][t * rope.half + i] = std::sin(angle);
      }
    }
  }
}

void StepProgram::norm_rows(const Region& region, int64_t rows, bool own, int tid) {
  const OpDesc& op = region.op;
  const int64_t n = width(op.src);
  const float* weight = desc_.vectors[op.weight];
  const Share share = own ? Share(rows, 0, 1) : Share(rows, tid, threads_);
  float* temp = temp_rows_ + temp_row_floats_ * tid;
  for (int64_t r = share.first; r < share.last; ++r) {
    float* out = region.stores ? slot(op.dst) + r * n : temp;
    kernels().rms_norm(slot(op.src) + r * n, weight, op.eps, n, op.add != 0, out);
    if (region.prepare_for < 0) continue;
    const PackedWeight& w = desc_.weights[region.prepare_for];
    prepare_rows(w.format, w.k, w.group, out - (region.stores ? r * n : 0), region.stores ? n : 0, rows, r, r + 1,
                 acts_for(own, tid));
  }
}

// Moves the selected rows of the live slots to the front; each thread moves its own columns.
void StepProgram::compact(int tid) {
  for (int32_t index : compact_slots_) {
    const int64_t n = width(index);
    const Share share(n, tid, threads_);
    float* base = slot(index);
    for (size_t i = 0; i < selected_.size(); ++i) {
      if (static_cast<size_t>(selected_[i]) == i) continue;
      std::memcpy(base + static_cast<int64_t>(i) * n + share.first, base + selected_[i] * n + share.first,
                  static_cast<size_t>(share.last - share.first) * sizeof(float));
    }
  }
}

void StepProgram::run_head(const Region& region, const LogitChunk& chunk, int tid) {
  switch (region.kind) {
    case RegionKind::HeadPrepare: return head_prepare(region, chunk, tid);
    case RegionKind::HeadLinear: {
      LinearArgs args{};
      args.w = &desc_.weights[region.op.weight];
      args.acts = acts_;
      args.m = chunk.rows;
      args.y = logits_;
      args.ldy = desc_.vocab;
      return linear(args, tid, threads_);
    }
    case RegionKind::HeadScan: return head_scan(region, chunk, tid);
    default: return sample_chunk(chunk, tid);
  }
}

void StepProgram::head_prepare(const Region& region, const LogitChunk& chunk, int tid) {
  const OpDesc& op = region.op;
  const int64_t n = width(op.src);
  const PackedWeight& w = desc_.weights[region.prepare_for];
  float* temp = temp_rows_ + temp_row_floats_ * tid;
  const Share share(chunk.rows, tid, threads_);
  for (int64_t r = share.first; r < share.last; ++r) {
    const float* x = slot(op.src) + logit_list_[chunk.first + r].token * n;
    if (op.kind == kNorm) {
      kernels().rms_norm(x, desc_.vectors[op.weight], op.eps, n, false, temp);
      x = temp;
    }
    prepare_rows(w.format, w.k, w.group, x, 0, chunk.rows, r, r + 1, acts_);
  }
}

// Finishes and scans this thread's columns of every row.
void StepProgram::head_scan(const Region& region, const LogitChunk& chunk, int tid) {
  const Share columns(desc_.vocab, tid, threads_);
  for (int64_t r = 0; r < chunk.rows; ++r) {
    float* y = logits_ + r * desc_.vocab + columns.first;
    kernels().finish_logits(y, columns.last - columns.first, region.op.scale, region.op.softcap);
    LogitScan scan = kernels().scan_logits(y, columns.last - columns.first);
    scan.best_id += static_cast<int32_t>(columns.first);
    scans_[r * threads_ + tid] = scan;
  }
}

void StepProgram::sample_chunk(const LogitChunk& chunk, int tid) {
  const int64_t vocab = desc_.vocab;
  char* at = scratch_ + scratch_bytes_ * tid;
  const SampleScratch scratch{reinterpret_cast<int32_t*>(at + vocab * 24), reinterpret_cast<double*>(at)};
  for (int64_t r = tid; r < chunk.rows; r += threads_) {
    LogitScan scan = scans_[r * threads_];
    for (int t = 1; t < threads_; ++t) {
      const LogitScan& part = scans_[r * threads_ + t];
      scan.num_bad += part.num_bad;
      if (part.best > scan.best) scan.best = part.best, scan.best_id = part.best_id;
    }
    const LogitRow& wanted = logit_list_[chunk.first + r];
    float* y = logits_ + r * vocab;
    if (in_.logits) {
      std::memcpy(in_.logits + (chunk.first + r) * vocab, y, static_cast<size_t>(vocab) * sizeof(float));
      continue;
    }
    if (wanted.row < 0) {
      const ScoreIn& score = in_.scores[wanted.score];
      if (in_.scored[wanted.score].status == kUnknownToken) continue;
      score_row(y, vocab, scan, score.target, score.num_top, scratch, &in_.scored[wanted.score]);
      continue;
    }
    const RowIn& row = in_.rows[wanted.row];
    if (in_.samples[wanted.row].status == kUnknownToken) continue;
    SampleContext context{};
    context.sampling = &in_.samplings[row.entry];
    context.bias_ids = in_.bias_ids;
    context.bias_values = in_.bias_values;
    context.history = row.num_history > 0 ? in_.ids + row.history_at : nullptr;
    context.num_history = row.num_history;
    context.prompt_len = row.prompt_len;
    context.banned = in_.ids + row.banned_at;
    context.num_banned = row.num_banned;
    context.num_output = static_cast<uint32_t>(row.num_output);
    sample_row(y, vocab, scan, context, scratch, &in_.samples[wanted.row]);
  }
}

}  // namespace headrace
