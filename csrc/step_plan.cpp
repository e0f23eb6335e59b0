// StepProgram::begin: check a step, list the logits it wants and share out its attention. One thread. See step.h.
#include <algorithm>
#include <numeric>

#include "step.h"

namespace headrace {
namespace {

// Rows of a block of the attention micro-kernel; items are cut at multiples of it.
constexpr int32_t kRowStep = 6, kItemRows = 48;
constexpr int64_t kFinePieces = 4;  // items below 1 / kFinePieces of a thread's work balance well enough

int64_t span(int64_t pos, int32_t window) { return window > 0 ? std::min<int64_t>(pos + 1, window) : pos + 1; }

}  // namespace

StepStatus StepProgram::begin(const StepIn& in) {
  in_ = in;
  if (in.num_tokens > desc_.max_tokens) return kStepTooLong;
  row_starts_.assign(1, 0);
  logit_list_.clear();
  selected_.clear();
  turns_any_ = false;
  for (int32_t r = 0; r < in.num_rows; ++r) {
    const RowIn& row = in.rows[r];
    const int32_t first = row_starts_.back(), end = first + row.num_tokens;
    if (end > in.num_tokens || row.num_tokens < 1 || row.num_history > kMaxHistory) return kStepTooLong;
    const int32_t last_pos = row.start + row.num_tokens - 1;
    const int32_t* blocks = in.block_tables + static_cast<int64_t>(row.entry) * in.table_width;
    const int32_t last_block = last_pos / desc_.block_size - row.num_evicted;
    const int32_t sink_blocks = (row.num_sinks + desc_.block_size - 1) / desc_.block_size;
    const int32_t lowest = row.window > 0 ? row.start - row.window + 1 : 0;  // that the row's first token may see
    const bool evicts_unseen = (sink_blocks + row.num_evicted) * desc_.block_size <= lowest;
    if (last_block >= in.table_width || row.num_evicted < 0 || (row.num_evicted > 0 && !evicts_unseen)) return kStepBadBlock;
    for (int32_t b = 0; b <= last_block; ++b)
      if (blocks[b] < 0 || blocks[b] >= desc_.num_blocks) return kStepBadBlock;
    in.samples[r].status = kSampled;
    for (int32_t i = 0; i < row.num_tokens; ++i) {
      const int32_t pos = row.start + i, offset = pos % desc_.block_size;
      const bool begins_here = pos - offset >= row.start;
      const int32_t token = in.tokens[first + i];
      const bool known = token >= 0 && token < desc_.vocab;
      if (!known && in.samples[r].status != kUnknownToken) {
        in.samples[r].status = kUnknownToken;
        in.samples[r].token = token;
      }
      tokens_[first + i] = known ? token : 0;
      positions_[first + i] = pos;
      turns_[first + i] = row.num_sinks > 0 ? std::min(0, row.num_sinks + row.window - 1 - pos) : 0;
      turns_any_ = turns_any_ || turns_[first + i] < 0;
      kv_slots_[first + i] = {blocks[pos / desc_.block_size - row.num_evicted], offset, i == row.num_tokens - 1 && begins_here};
    }
    if (row.samples && !in.logits) {
      selected_.push_back(end - 1);
      logit_list_.push_back({end - 1, r, -1});
    }
    row_starts_.push_back(end);
  }
  for (int32_t t = 0; in.logits && t < row_starts_.back(); ++t) {
    selected_.push_back(t);
    logit_list_.push_back({t, -1, -1});
  }
  for (int32_t i = 0; i < in.num_scores && !in.logits; ++i) {
    if (in.scores[i].token < 0 || in.scores[i].token >= in.num_tokens) return kStepTooLong;
    const bool known = in.scores[i].target >= 0 && in.scores[i].target < desc_.vocab;
    in.scored[i].status = known ? kSampled : kUnknownToken;
    selected_.push_back(in.scores[i].token);
    logit_list_.push_back({in.scores[i].token, -1, i});
  }
  std::sort(selected_.begin(), selected_.end());
  selected_.erase(std::unique(selected_.begin(), selected_.end()), selected_.end());
  for (LogitRow& row : logit_list_)
    row.token = static_cast<int32_t>(std::lower_bound(selected_.begin(), selected_.end(), row.token) - selected_.begin());
  for (AttentionPlan& plan : plans_) plan_attention(plan);
  return kStepDone;
}

// Of the last item of a row and head: what it reads. Sinks, if any, stay in the caches by themselves.
void StepProgram::plan_read(AttentionPlan& plan, const AttentionItem& item, bool is_chunk) {
  const int64_t size = desc_.block_size, pos = item.pos0 + (item.last - 1) / plan.group;
  int64_t from = pos + 1 - span(pos, item.window), to = pos;
  if (is_chunk) {
    if (item.chunk == kSinkChunk) return;
    from = std::max(from, item.chunk * static_cast<int64_t>(kKvChunk));
    to = std::min(to, (item.chunk + 1) * static_cast<int64_t>(kKvChunk) - 1);
  }
  const auto place = [&](int64_t token) { return static_cast<int32_t>(token / size - item.num_evicted); };
  plan.reads.push_back({item.blocks, item.kv_head, place(from), place(to), static_cast<int32_t>(to % size) + 1});
}

void KvFetches::begin(const KvLayer& layer, const AttentionPlan& plan, int tid) {
  kv = &layer;
  read = plan.reads.data() + plan.read_starts[tid];
  end = plan.reads.data() + plan.read_starts[tid + 1];
  left = 0;
  is_v = false;
  if (read != end) block = read->first;
}

bool KvFetches::advance(Fetches* fetches) {
  KvFetches& self = *static_cast<KvFetches*>(fetches);
  if (self.read == self.end) return false;
  const KvLayer& kv = *self.kv;
  const int64_t offset = self.read->blocks[self.block] * kv.block_stride + self.read->kv_head * kv.head_stride;
  const int64_t tokens = self.block == self.read->last ? (self.read->last_tokens + 15) / 16 * 16 : kv.block_size;
  self.at = reinterpret_cast<const uint8_t*>((self.is_v ? kv.v : kv.k) + offset);
  self.left = kv.type == KvType::Int8 ? kv.head_stride : tokens * kv.dim * 2;
  if (self.is_v && self.block++ == self.read->last && ++self.read != self.end) self.block = self.read->first;
  self.is_v = !self.is_v;
  return true;
}

// Cut rows into items and give each, longest first, to the thread with the least to do. An item that is a large share of
// a thread's work is cut by chunks of positions as well.
void StepProgram::plan_attention(AttentionPlan& plan) {
  struct Costed {
    AttentionItem item;
    int64_t cost;
    int64_t place = -1;
    int32_t row = 0;
  };
  const auto cost_of = [](int64_t positions, int32_t pairs) { return (positions + 32) * (pairs + 3); };
  std::vector<Costed> whole, all;
  int64_t total = 0;
  const auto cut = [&](int32_t r, int32_t from, int32_t to, int32_t window, int32_t num_sinks) {
    const RowIn& row = in_.rows[r];
    const int32_t pairs = to - from, parts = (pairs + kItemRows - 1) / kItemRows;
    const int32_t size = parts > 1 ? ((pairs + parts - 1) / parts + kRowStep - 1) / kRowStep * kRowStep : pairs;
    const int32_t* blocks = in_.block_tables + static_cast<int64_t>(row.entry) * in_.table_width;
    for (int32_t head = 0; head < plan.kv_heads; ++head) {
      for (int32_t first = from; first < to; first += size) {
        const int32_t last = std::min(to, first + size);
        const int64_t cost = cost_of(span(row.start + (last - 1) / plan.group, window) + num_sinks, last - first);
        whole.push_back({{blocks, row_starts_[r], row.start, head, first, last, 0, window, num_sinks, row.num_evicted, 0, nullptr},
                         cost, -1, r});
        total += cost;
      }
    }
  };
  for (int32_t r = 0; r < in_.num_rows; ++r) {
    const RowIn& row = in_.rows[r];
    // Tokens that see less than all: only where the layer's own window is not narrower anyway.
    const bool streams = row.window > 0 && (plan.window == 0 || plan.window > row.window);
    const int32_t seeing_all = streams ? std::clamp(row.num_sinks + row.window - row.start, 0, row.num_tokens) : row.num_tokens;
    cut(r, 0, seeing_all * plan.group, plan.window, 0);
    cut(r, seeing_all * plan.group, row.num_tokens * plan.group, row.window, row.num_sinks);
  }

  plan.merges.clear();
  int64_t floats = 0;
  for (const Costed& costed : whole) {
    const AttentionItem& item = costed.item;
    const int64_t pos_first = item.pos0 + item.first / plan.group, pos_last = item.pos0 + (item.last - 1) / plan.group;
    const int64_t low = pos_first + 1 - span(pos_first, item.window);
    const int64_t first = low / kKvChunk, last = pos_last / kKvChunk;
    if (threads_ == 1 || first == last || costed.cost * threads_ * kFinePieces <= total) {
      all.push_back(costed);
      continue;
    }
    const int32_t pairs = item.last - item.first;
    plan.merges.push_back({item, floats, 0});
    const auto add = [&](int64_t chunk, int64_t positions) {
      all.push_back({item, cost_of(positions, pairs), floats, costed.row});
      all.back().item.chunk = static_cast<int32_t>(chunk);
      plan.merges.back().count += 1;
      floats += attention_partial_floats(pairs, plan.dim);
    };
    if (item.num_sinks > 0) add(kSinkChunk, item.num_sinks);
    for (int64_t chunk = first; chunk <= last; ++chunk)
      add(chunk, std::min(pos_last + 1, (chunk + 1) * kKvChunk) - std::max(low, chunk * kKvChunk));
  }
  if (static_cast<int64_t>(partials_.size()) < floats) partials_.resize(static_cast<size_t>(floats));

  std::stable_sort(all.begin(), all.end(), [](const Costed& a, const Costed& b) { return a.cost > b.cost; });
  std::vector<int64_t> load(static_cast<size_t>(threads_), 0);
  std::vector<std::vector<Costed>> shares(static_cast<size_t>(threads_));
  int64_t fair = 0;
  for (const Costed& costed : all) fair += costed.cost;
  fair = (fair + threads_ - 1) / threads_;
  for (const Costed& costed : all) {
    // Where the token's K and V have just been written, unless that thread has its share.
    const int64_t owner = static_cast<int64_t>(costed.item.token0) * threads_ / in_.num_tokens;
    size_t t = static_cast<size_t>(owner);
    if (load[t] + costed.cost > fair) t = static_cast<size_t>(std::min_element(load.begin(), load.end()) - load.begin());
    load[t] += costed.cost;
    shares[t].push_back(costed);
  }
  plan.items.clear();
  plan.places.clear();
  plan.starts.assign(1, 0);
  plan.reads.clear();
  plan.read_starts.assign(1, 0);
  for (const auto& share : shares) {
    for (const Costed& costed : share) {
      plan.items.push_back(costed.item);
      plan.places.push_back(costed.place);
      const RowIn& row = in_.rows[costed.row];
      if (costed.item.last == row.num_tokens * plan.group && row.start > 0) plan_read(plan, costed.item, costed.place >= 0);
    }
    plan.read_starts.push_back(static_cast<int32_t>(plan.reads.size()));
    plan.starts.push_back(static_cast<int32_t>(plan.items.size()));
  }
}

}  // namespace headrace
