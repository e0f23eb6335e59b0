// StepProgram: from op list to regions, and every buffer a step needs, allocated once. See step.h.
#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "step.h"

namespace headrace {
namespace {

constexpr int64_t kAlign = 64;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

void* map_zeroed(int64_t bytes) {
  void* p = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  madvise(p, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  return p;
}

// Hands out aligned pieces of one mapping; first run only counts.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    T* p = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), kAlign);
    return p;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

bool same_acts(const PackedWeight& a, const PackedWeight& b) {
  return a.format == b.format && a.k == b.k && a.group == b.group;
}

bool reads(const OpDesc& op, int32_t slot) {
  if (op.kind == kEmbed) return false;
  const bool accumulates = (op.kind == kNorm && op.add) || (op.kind == kLinear && op.epilogue == static_cast<int>(Epilogue::Add));
  return op.src == slot || (accumulates && op.dst == slot);
}

bool overwrites(const OpDesc& op, int32_t slot) { return op.kind != kHead && op.dst == slot && !reads(op, slot); }

}  // namespace

StepProgram* StepProgram::create(const ProgramDesc& desc, Pool* pool) {
  StepProgram* self = new (std::nothrow) StepProgram();
  if (!self) return nullptr;
  self->desc_ = desc;
  self->pool_ = pool;
  self->threads_ = pool->threads();
  self->ops_.assign(desc.ops, desc.ops + desc.num_ops);
  self->ropes_.assign(desc.ropes, desc.ropes + desc.num_ropes);
  self->widths_.assign(desc.slot_widths, desc.slot_widths + desc.num_slots);
  self->compile();
  if (!self->allocate()) {
    delete self;
    return nullptr;
  }
  return self;
}

StepProgram::~StepProgram() {
  if (memory_) munmap(memory_, static_cast<size_t>(memory_bytes_));
  if (kv_memory_) munmap(kv_memory_, static_cast<size_t>(kv_bytes_));
}

bool StepProgram::allocate() {
  const int64_t tokens = desc_.max_tokens;
  // KV: per layer all K, then all V.
  std::vector<int64_t> layer_bytes;
  for (int i = 0; i < desc_.num_layers; ++i) {
    KvLayer layer{};
    layer.type = desc_.kv_type;
    layer.block_size = desc_.block_size;
    layer.kv_heads = desc_.layers[i].kv_heads;
    layer.head_dim = desc_.layers[i].head_dim;
    layer.dim = static_cast<int32_t>(round_up(layer.head_dim, 16));
    layer.head_stride = kv_head_bytes(layer.type, layer.block_size, layer.dim);
    layer.block_stride = layer.kv_heads * layer.head_stride;
    layers_.push_back(layer);
    layer_bytes.push_back(layer.block_stride * desc_.num_blocks);
    kv_bytes_ += 2 * layer_bytes.back();
  }
  kv_bytes_ = round_up(std::max<int64_t>(kv_bytes_, 1), 4096);
  kv_memory_ = map_zeroed(kv_bytes_);
  if (!kv_memory_) return false;
  char* at = static_cast<char*>(kv_memory_);
  for (size_t i = 0; i < layers_.size(); ++i) {
    layers_[i].k = at;
    layers_[i].v = at + layer_bytes[i];
    at += 2 * layer_bytes[i];
    for (char* base : {layers_[i].k, layers_[i].v}) block_parts_.push_back({base, layers_[i].block_stride});
  }

  int64_t acts_bytes = kAlign, attention_dim = 16, widest = 16;
  for (const Region& region : regions_) {
    if (region.prepare_for >= 0) {
      const PackedWeight& w = desc_.weights[region.prepare_for];
      acts_bytes = std::max(acts_bytes, act_bytes(w.format, w.k, w.group, tokens));
      own_acts_bytes_ = std::max(own_acts_bytes_, act_bytes(w.format, w.k, w.group, kRepeatRows));
    }
    if (region.kind == RegionKind::Attention) attention_dim = std::max(attention_dim, round_up(region.op.head_dim, 16));
  }
  for (int64_t w : widths_) widest = std::max(widest, w);
  own_acts_bytes_ = round_up(own_acts_bytes_, kAlign);
  temp_row_floats_ = round_up(widest, 16);
  const int64_t vocab = desc_.vocab;
  logit_rows_ = std::max<int64_t>(1, std::min<int64_t>(tokens, vocab > 100000 ? 32 : 64));
  const int64_t sample_bytes = round_up(std::max<int64_t>(vocab, kMaxHistory) * 4, kAlign) + vocab * 24;
  scratch_bytes_ = round_up(std::max(attention_scratch_bytes(attention_dim), sample_bytes), 4096);

  slots_.resize(widths_.size());
  for (std::vector<float*>* tables : {&cos_, &sin_, &turn_cos_, &turn_sin_}) tables->resize(ropes_.size());
  for (int pass = 0; pass < 2; ++pass) {
    Arena arena(static_cast<char*>(memory_));
    for (size_t i = 0; i < widths_.size(); ++i) slots_[i] = arena.take<float>(tokens * widths_[i]);
    for (size_t i = 0; i < ropes_.size(); ++i) {
      cos_[i] = arena.take<float>(tokens * ropes_[i].half);
      sin_[i] = arena.take<float>(tokens * ropes_[i].half);
      turn_cos_[i] = arena.take<float>(tokens * ropes_[i].half);
      turn_sin_[i] = arena.take<float>(tokens * ropes_[i].half);
    }
    acts_ = arena.take<char>(acts_bytes);
    own_acts_ = arena.take<char>(own_acts_bytes_ * threads_);
    temp_rows_ = arena.take<float>(temp_row_floats_ * threads_);
    kv_slots_ = arena.take<KvSlot>(tokens);
    positions_ = arena.take<int32_t>(tokens);
    tokens_ = arena.take<int32_t>(tokens);
    turns_ = arena.take<int32_t>(tokens);
    logits_ = arena.take<float>(logit_rows_ * vocab);
    scans_ = arena.take<LogitScan>(logit_rows_ * threads_ * 8);
    scratch_ = arena.take<char>(scratch_bytes_ * threads_);
    if (pass == 0) {
      memory_bytes_ = round_up(arena.used(), 4096);
      memory_ = map_zeroed(memory_bytes_);
      if (!memory_) return false;
    }
  }
  return true;
}

// Whether the fp32 result of the norm at `index` is needed beside the activations prepared for the first linear.
bool StepProgram::slot_read_as_floats(size_t index) const {
  const int32_t slot = ops_[index].dst;
  const PackedWeight* first = nullptr;
  for (size_t i = index + 1; i < ops_.size(); ++i) {
    const OpDesc& op = ops_[i];
    if (reads(op, slot)) {
      if (op.kind != kLinear || op.dst == slot) return true;
      if (first && !same_acts(*first, desc_.weights[op.weight])) return true;
      if (!first && i != index + 1) return true;  // something else may use the activations buffer in between
      first = &desc_.weights[op.weight];
    } else if (first && (op.kind == kLinear || op.kind == kHead)) {
      // another linear takes over the activations buffer; later readers need the floats
      for (size_t j = i + 1; j < ops_.size() && !overwrites(ops_[j], slot); ++j)
        if (reads(ops_[j], slot)) return true;
      return false;
    }
    if (overwrites(op, slot)) return false;
  }
  return false;
}

// Slots read after op `index` before they are written again.
std::vector<int32_t> StepProgram::live_after(size_t index) const {
  std::vector<int32_t> live;
  for (int32_t slot = 0; slot < desc_.num_slots; ++slot) {
    for (size_t i = index + 1; i < ops_.size(); ++i) {
      if (reads(ops_[i], slot)) {
        live.push_back(slot);
        break;
      }
      if (overwrites(ops_[i], slot)) break;
    }
  }
  return live;
}

void StepProgram::compile_linear(const OpDesc& op, size_t index) {
  const PackedWeight& w = desc_.weights[op.weight];
  // Reuse what is prepared already, when nothing has changed the slot since.
  bool prepared = false, repeats = false;
  for (size_t i = regions_.size(); i-- > 0;) {
    const Region& region = regions_[i];
    if (region.prepare_for >= 0) {
      const int32_t from = region.kind == RegionKind::Norm ? region.op.dst : region.op.src;
      prepared = from == op.src && same_acts(desc_.weights[region.prepare_for], w);
      repeats = region.repeats;
      break;
    }
    if (region.op.dst == op.src) break;
  }
  if (!prepared) {
    Region* last = &regions_.back();
    if (index > 0 && last->kind == RegionKind::Norm && !last->op.add && last->op.dst == op.src && last->prepare_for < 0) {
      last->prepare_for = op.weight;
      last->stores = slot_read_as_floats(index - 1);
      Region* before = regions_.size() > 1 ? &regions_[regions_.size() - 2] : nullptr;
      const bool continues = before && before->kind == RegionKind::Norm;
      if (continues) before->runs_on = true;
      last->repeats = !continues && !last->stores && op.dst != last->op.src;
      repeats = last->repeats;
    } else {
      Region prepare{RegionKind::Prepare, op};
      prepare.prepare_for = op.weight;
      prepare.repeats = op.dst != op.src;
      repeats = prepare.repeats;
      regions_.push_back(prepare);
    }
  }
  Region linear{RegionKind::Linear, op};
  linear.repeats = repeats;
  regions_.push_back(linear);
}

void StepProgram::compile() {
  size_t last_attention = 0;
  for (size_t i = 0; i < ops_.size(); ++i)
    if (ops_[i].kind == kAttention) last_attention = i;
  bool selected = false;
  for (size_t i = 0; i < ops_.size(); ++i) {
    const OpDesc& op = ops_[i];
    const size_t before = regions_.size();
    switch (op.kind) {
      case kEmbed: regions_.push_back({RegionKind::Begin, op}); break;
      case kNorm: regions_.push_back({RegionKind::Norm, op}); break;
      case kLinear: compile_linear(op, i); break;
      case kQkWrite:
        last_cache_region_ = regions_.size();
        regions_.push_back({RegionKind::QkWrite, op});
        break;
      case kAttention: {
        Region region{RegionKind::Attention, op};
        for (const OpDesc& other : ops_)
          if (other.kind == kQkWrite && other.layer == op.layer) region.op.rope = other.rope;
        const int32_t group = op.num_heads / op.num_kv_heads;
        size_t plan = 0;
        const int32_t dim = static_cast<int32_t>(round_up(op.head_dim, 16));
        while (plan < plans_.size() && !(plans_[plan].window == op.window && plans_[plan].kv_heads == op.num_kv_heads &&
                                         plans_[plan].group == group && plans_[plan].dim == dim))
          ++plan;
        if (plan == plans_.size()) plans_.push_back({op.window, op.num_kv_heads, group, dim, {}, {}, {}, {}, {}, {}});
        region.plan = static_cast<int32_t>(plan);
        regions_.push_back(region);
        break;
      }
      case kHead: {
        Region prepare{RegionKind::HeadPrepare, op};
        prepare.prepare_for = op.weight;
        Region* last = &regions_.back();
        if (last->kind == RegionKind::Norm && !last->op.add && last->op.dst == op.src && last->prepare_for < 0) {
          prepare.op = last->op;  // the final norm runs on the rows to score only
          prepare.op.kind = kNorm;
          regions_.pop_back();
        }
        first_head_region_ = regions_.size();
        regions_.push_back(prepare);
        regions_.push_back({RegionKind::HeadLinear, op});
        regions_.push_back({RegionKind::HeadScan, op});
        regions_.push_back({RegionKind::Sample, op});
        break;
      }
      default: break;
    }
    for (size_t r = before; r < regions_.size(); ++r) regions_[r].selected = selected;
    if (i == last_attention) {
      compact_slots_ = live_after(i);
      regions_.push_back({RegionKind::Compact, op});
      selected = true;
    }
  }
  if (first_head_region_ == 0) first_head_region_ = regions_.size();
  int32_t next = -1;
  for (size_t i = regions_.size(); i-- > 0;) {
    regions_[i].next_attention = next;
    if (regions_[i].kind == RegionKind::Attention) next = static_cast<int32_t>(i);
  }
  fetches_.resize(static_cast<size_t>(threads_));
  for (KvFetches& fetches : fetches_) fetches.next = KvFetches::advance;
}

}  // namespace headrace
