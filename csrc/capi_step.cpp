// C ABI of the step interpreter and of each of its ops alone (debugging, parity tests). Mirrored by ops/native/step.py.
//
// Pointers are the caller's and stay alive during a call, the weights and vectors of a program as long as the program.
#include <cstring>
#include <vector>

#include "step.h"

#define HR_API extern "C" __attribute__((visibility("default")))

using namespace headrace;

// Bytes of the mirrored structs; the binding refuses a library whose structs differ from its own.
HR_API void hr_step_layout(int32_t* out) {
  const int32_t bytes[] = {
      sizeof(OpDesc),  sizeof(RopeDesc),  sizeof(CacheDesc), sizeof(ProgramDesc), sizeof(PackedWeight), sizeof(RowIn),
      sizeof(ScoreIn), sizeof(StepIn),    sizeof(Sampling),  sizeof(SampleOut),   sizeof(KvLayer),      sizeof(KvSlot),
      sizeof(QkWriteArgs), sizeof(AttentionArgs), sizeof(AttentionItem), sizeof(SampleContext), sizeof(BlockCopy),
  };
  std::memcpy(out, bytes, sizeof bytes);
}

HR_API void* hr_program_new(const ProgramDesc* desc, void* pool) {
  return StepProgram::create(*desc, static_cast<Pool*>(pool));
}

HR_API void hr_program_free(void* program) { delete static_cast<StepProgram*>(program); }

HR_API int32_t hr_step(void* program, const StepIn* in) { return static_cast<StepProgram*>(program)->step(*in); }

// out[0] KV bytes, out[1] scratch bytes, out[2] regions
HR_API void hr_program_sizes(const void* program, int64_t* out) {
  const StepProgram* self = static_cast<const StepProgram*>(program);
  out[0] = self->kv_bytes();
  out[1] = self->scratch_bytes();
  out[2] = self->num_regions();
}

HR_API int64_t hr_block_bytes(const void* program) { return static_cast<const StepProgram*>(program)->block_bytes(); }

// 0, or 1 when a copy names a block outside the pool.
HR_API int32_t hr_copy_blocks(void* program, const BlockCopy* copies, int64_t count) {
  return static_cast<StepProgram*>(program)->copy_blocks(copies, count) ? 0 : 1;
}

// Switch timing on or off; copies and clears the nanoseconds per RegionKind.
HR_API void hr_program_times(void* program, int32_t on, int64_t* out) {
  StepProgram* self = static_cast<StepProgram*>(program);
  self->times = on != 0;
  std::memcpy(out, self->region_ns, sizeof self->region_ns);
  std::memset(self->region_ns, 0, sizeof self->region_ns);
}

HR_API void hr_rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t n, int32_t add, float* out) {
  for (int64_t r = 0; r < rows; ++r) kernels().rms_norm(x + r * n, weight, eps, n, add != 0, out + r * n);
}

HR_API void hr_qk_write(const QkWriteArgs* args, int64_t num_tokens) {
  for (int64_t t = 0; t < num_tokens; ++t) kernels().qk_write(*args, t, 0, args->num_heads + 2 * args->kv->kv_heads);
}

HR_API int32_t hr_attention(const AttentionArgs* args, const AttentionItem* items, int64_t num_items) {
  std::vector<float> scratch(static_cast<size_t>(attention_scratch_bytes(args->kv->dim) / 4 + 16));
  for (int64_t i = 0; i < num_items; ++i) {
    if (items[i].last - items[i].first > kMaxItemRows) return kStepTooLong;
    kernels().attention(*args, items[i], scratch.data());
  }
  return kStepDone;
}

HR_API void hr_attention_merge(const AttentionArgs* args, const AttentionItem* item, float* partials, int32_t count) {
  std::vector<float> scratch(static_cast<size_t>(attention_scratch_bytes(args->kv->dim) / 4 + 16));
  kernels().attention_merge(*args, *item, partials, count, scratch.data());
}

HR_API void hr_finish_logits(float* y, int64_t n, float scale, float cap) { kernels().finish_logits(y, n, scale, cap); }

namespace {

struct Scratch {
  explicit Scratch(int64_t vocab, int64_t history)
      : ids(static_cast<size_t>(vocab > history ? vocab : history)), weights(static_cast<size_t>(3 * vocab)) {}
  SampleScratch view() { return {ids.data(), weights.data()}; }
  std::vector<int32_t> ids;
  std::vector<double> weights;
};

}  // namespace

// One row of logits, changed in place.
HR_API void hr_sample_row(float* y, int64_t vocab, const SampleContext* context, SampleOut* out) {
  Scratch scratch(vocab, context->num_history);
  sample_row(y, vocab, kernels().scan_logits(y, vocab), *context, scratch.view(), out);
}

HR_API void hr_score_row(const float* y, int64_t vocab, int32_t token, int32_t num_top, SampleOut* out) {
  Scratch scratch(vocab, 0);
  score_row(y, vocab, kernels().scan_logits(y, vocab), token, num_top, scratch.view(), out);
}
