// A Program compiled to regions, and the whole step that all threads run over them in one call.
//
// Mirrored structs (ops/native/step.py): OpDesc, ProgramDesc, RowIn, StepIn, sample.h's Sampling and SampleOut. Every thread
// interprets the same list of regions; a barrier follows a region unless the same thread's rows feed the next one.
//
// Determinism: a token's numbers depend on its own sequence alone (see linear.h, attn_impl.h); rows are split over
// threads, never summed across them.
// Who calls: capi_step.cpp. A StepProgram is used by one caller at a time.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "linear.h"
#include "pool.h"
#include "sample.h"

namespace headrace {

enum OpKind : int32_t { kEmbed = 0, kNorm = 1, kLinear = 2, kQkWrite = 3, kAttention = 4, kHead = 5 };

// One op of a Program; -1 where an index does not apply. Slot, weight, vector and rope numbers index ProgramDesc's arrays.
struct OpDesc {
  int32_t kind, src, dst, weight;  // weight: matrix for embed, linear, head; vector for norm
  int32_t bias, q_norm, k_norm;    // vectors
  int32_t layer, num_heads, num_kv_heads, head_dim;
  int32_t rope, window, epilogue, activation, add;
  int32_t sinks;  // vector: a logit per query head
  float scale, eps, softcap;
};

struct RopeDesc {
  const float* inv_freq;  // [half]
  int32_t half;
  float scale;
};

struct CacheDesc {
  int32_t kv_heads, head_dim;
};

struct ProgramDesc {
  int32_t num_ops, num_slots, num_ropes, num_layers;
  int32_t max_tokens, num_blocks, block_size;
  KvType kv_type;
  int64_t vocab;
  const OpDesc* ops;
  const PackedWeight* weights;
  const float* const* vectors;
  const int32_t* slot_widths;
  const RopeDesc* ropes;
  const CacheDesc* layers;
};

// One sequence's part of a step.
struct RowIn {
  int32_t num_tokens, start;
  int32_t entry;         // line of the block tables and of `samplings`
  int32_t num_output;
  int32_t samples;       // 1: draw a token after the last one
  int32_t num_history, prompt_len, num_banned;
  int32_t window, num_sinks;  // 0: all tokens are seen; else the last `window` and the first `num_sinks`
  int32_t num_evicted;        // blocks behind those of the sinks that are missing from the table
  int32_t reserved;
  int64_t history_at, banned_at;  // into StepIn::ids
};

struct ScoreIn {
  int32_t token, target, num_top, reserved;  // packed token, the id that follows it
};

struct StepIn {
  int32_t num_rows, num_tokens, num_scores, table_width;
  const RowIn* rows;
  const int32_t* tokens;        // [T]
  const int32_t* block_tables;  // [entries, table_width]
  const Sampling* samplings;    // [entries]
  const int32_t* bias_ids;
  const float* bias_values;
  const int32_t* ids;           // histories and banned ids
  const ScoreIn* scores;
  SampleOut* samples;           // [num_rows]; status of every row, the rest where a row samples
  SampleOut* scored;            // [num_scores]
  float* logits;                // [T, V], or null; when given, nothing is sampled or scored
};

enum class CopyKind : int32_t { Duplicate, Save, Load };

// All bytes of one block: to or from another block, or host memory of block_bytes().
struct BlockCopy {
  CopyKind kind;
  int32_t block;  // Duplicate: where to
  int64_t other;  // Duplicate: the block to copy; else the address of host memory
};

enum StepStatus : int32_t { kStepDone = 0, kStepTooLong = 1, kStepBadBlock = 2 };

enum class RegionKind : int32_t {
  Begin, Norm, Prepare, Linear, QkWrite, Attention, Compact, HeadPrepare, HeadLinear, HeadScan, Sample, Count
};

constexpr int64_t kMaxHistory = 1 << 20;  // tokens that penalties can look at
constexpr int64_t kRepeatRows = 4;  // up to so many rows each thread prepares activations for itself

struct Region {
  RegionKind kind;
  OpDesc op;
  int32_t prepare_for = -1;  // weight whose activations this region prepares
  bool stores = true;        // Norm: the fp32 result is read by more than the prepared activations
  bool repeats = false;      // with few rows every thread prepares all of them, for itself, and no barrier follows
  bool runs_on = false;      // no barrier: the next region reads only this thread's rows
  bool selected = false;     // runs on the compacted rows
  int32_t plan = -1;         // Attention: which work plan
  int32_t next_attention = -1;  // Begin, Attention: the next region of attention
};

// An item whose chunks went to several threads: their results lie one after another from `at`.
struct AttentionMerge {
  AttentionItem item;
  int64_t at;
  int32_t count;
};

// K and V of one head in the blocks first … last of a table: what a thread's items read that is there before the step.
struct KvRead {
  const int32_t* blocks;
  int32_t kv_head, first, last;
  int32_t last_tokens;  // of the last block
};

// Which thread attends to what, for one kind of attention layer.
struct AttentionPlan {
  int32_t window, kv_heads, group, dim;
  std::vector<AttentionItem> items;
  std::vector<int64_t> places;  // per item: where its partial result goes, -1 for none
  std::vector<int32_t> starts;  // [threads + 1] into items
  std::vector<AttentionMerge> merges;
  std::vector<KvRead> reads;
  std::vector<int32_t> read_starts;  // [threads + 1] into reads
};

// Fetches what the next attention region reads, on the side of the products before it.
struct alignas(64) KvFetches : Fetches {
  const KvLayer* kv;
  const KvRead *read, *end;
  int32_t block;
  bool is_v;
  void begin(const KvLayer& layer, const AttentionPlan& plan, int tid);
  static bool advance(Fetches* self);
};

struct LogitRow {
  int32_t token;  // packed token, then its row after compaction
  int32_t row;    // of StepIn::rows, or -1
  int32_t score;  // of StepIn::scores, or -1
};

// Some consecutive entries of the list of wanted logits.
struct LogitChunk {
  int64_t first, rows;
};

// What a block has in one of the pool's arrays; a block's bytes are those of all parts in order.
struct BlockPart {
  char* base;
  int64_t bytes;  // also from one block to the next
};

class StepProgram {
 public:
  // `desc.weights` and `desc.vectors` must outlive the program. Null: out of memory.
  static StepProgram* create(const ProgramDesc& desc, Pool* pool);
  ~StepProgram();
  StepProgram(const StepProgram&) = delete;

  // Check and plan a step (one thread), then run it on the pool.
  StepStatus step(const StepIn& in);

  int64_t kv_bytes() const { return kv_bytes_; }
  int64_t scratch_bytes() const { return memory_bytes_; }
  int64_t num_regions() const { return static_cast<int64_t>(regions_.size()); }
  int64_t block_bytes() const;
  // False, and nothing done, if a block is not in the pool.
  bool copy_blocks(const BlockCopy* copies, int64_t count);
  bool times = false;  // add up region_ns on thread 0
  int64_t region_ns[static_cast<int>(RegionKind::Count)] = {};

 private:
  StepProgram() = default;
  // step_compile.cpp
  bool allocate();
  void compile();
  void compile_linear(const OpDesc& op, size_t index);
  bool slot_read_as_floats(size_t index) const;
  std::vector<int32_t> live_after(size_t index) const;
  // step_plan.cpp
  StepStatus begin(const StepIn& in);
  void plan_attention(AttentionPlan& plan);
  void plan_read(AttentionPlan& plan, const AttentionItem& item, bool is_chunk);
  // step_run.cpp
  void run(int tid);
  bool run_region(const Region& region, int tid);
  void begin_rows(const Region& region, int tid);
  void begin_fetches(const Region& region, int tid);
  void norm_rows(const Region& region, int64_t rows, bool own, int tid);
  void compact(int tid);
  void attend(const Region& region, int tid);
  void run_head(const Region& region, const LogitChunk& chunk, int tid);
  void head_prepare(const Region& region, const LogitChunk& chunk, int tid);
  void head_scan(const Region& region, const LogitChunk& chunk, int tid);
  void sample_chunk(const LogitChunk& chunk, int tid);
  float* slot(int32_t index) const { return slots_[index]; }
  int64_t width(int32_t index) const { return widths_[index]; }
  void* acts_for(bool own, int tid) const { return own ? own_acts_ + own_acts_bytes_ * tid : acts_; }

  ProgramDesc desc_;
  Pool* pool_ = nullptr;
  int threads_ = 1;
  std::vector<OpDesc> ops_;
  std::vector<RopeDesc> ropes_;
  std::vector<KvLayer> layers_;
  std::vector<BlockPart> block_parts_;
  std::vector<int64_t> widths_;
  std::vector<float*> slots_;
  std::vector<Region> regions_;
  size_t first_head_region_ = 0;
  size_t last_cache_region_ = 0;  // the last that writes K and V
  std::vector<int32_t> compact_slots_;

  void* memory_ = nullptr;
  int64_t memory_bytes_ = 0;
  void* kv_memory_ = nullptr;
  int64_t kv_bytes_ = 0;
  char* acts_ = nullptr;       // prepared activations of max_tokens rows
  char* own_acts_ = nullptr;   // per thread, for few rows
  int64_t own_acts_bytes_ = 0;
  float* temp_rows_ = nullptr;  // per thread, one row of the widest slot
  int64_t temp_row_floats_ = 0;
  char* scratch_ = nullptr;  // per thread: attention, sampling
  int64_t scratch_bytes_ = 0;
  float* logits_ = nullptr;  // [logit_rows_, vocab]
  int64_t logit_rows_ = 0;
  LogitScan* scans_ = nullptr;  // [logit_rows_, threads]
  KvSlot* kv_slots_ = nullptr;  // [max_tokens]
  int32_t* tokens_ = nullptr;   // [max_tokens], unknown ids replaced by 0
  int32_t* positions_ = nullptr;
  int32_t* turns_ = nullptr;  // positions to turn a query by when it meets sinks, 0 or less
  bool turns_any_ = false;
  std::vector<float*> cos_, sin_;  // per rope [max_tokens, half]
  std::vector<float*> turn_cos_, turn_sin_;  // likewise: from a token's position to its place behind sinks and window

  // This step.
  StepIn in_{};
  std::vector<int32_t> row_starts_;
  std::vector<int32_t> selected_;  // packed tokens whose logits are wanted, ascending, each once
  std::vector<LogitRow> logit_list_;
  std::vector<AttentionPlan> plans_;
  std::vector<KvFetches> fetches_;  // [threads]
  std::vector<float> partials_;  // of the attention layer that runs now
};

}  // namespace headrace
