// C ABI of pool, ISA choice and single linear layers. Every function returns 0 or one of the codes below; nothing throws.
// Callers own all memory. Pointers must be valid for the sizes the functions of linear.h state; weights and activations
// 64-byte aligned. library.py has the Python side.
#include <atomic>
#include <new>

#include "cpu.h"
#include "gemm.h"
#include "layout.h"
#include "linear.h"
#include "pack.h"
#include "pool.h"
#include "selftest.h"

#define HR_API extern "C" __attribute__((visibility("default")))

using namespace headrace;

namespace {

enum Code : int32_t { kOk = 0, kBadArgument = 1, kNotAligned = 2, kUnavailable = 3 };

constexpr int32_t kAbiVersion = 1;
constexpr int kMaxThreads = 1024;

bool is_valid(const PackedWeight& w) {
  const bool grouped = w.format == WeightFormat::I8G || w.format == WeightFormat::I4G;
  if (static_cast<int32_t>(w.format) < 0 || static_cast<int32_t>(w.format) > 5) return false;
  if (w.n <= 0 || w.k <= 0 || w.n > (int64_t{1} << 31) || w.k > (int64_t{1} << 24)) return false;
  if (w.format == WeightFormat::I8R) {
    if (w.group < 64 || w.group > kMostRotatedGroup || w.group % 64 != 0 || w.asymmetric) return false;
  } else if (grouped ? w.group != 32 && w.group != 64 && w.group != 128 : w.group != 0 || w.asymmetric != 0) {
    return false;
  }
  return !(w.interleaved && w.n % 2);
}

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

struct PackTask {
  const PackedWeight* w;
  SourceFormat source;
  const uint8_t *rows, *up;
  int64_t block0, block1;
};

void pack_part(void* context, int tid, int threads) {
  const PackTask& task = *static_cast<const PackTask*>(context);
  const int64_t count = task.block1 - task.block0;
  const int64_t first = task.block0 + count * tid / threads, last = task.block0 + count * (tid + 1) / threads;
  if (first == last) return;
  const int64_t width = task.w->interleaved ? kTileColumns : kBlockColumns;
  const int64_t skip = (first - task.block0) * width * source_row_bytes(task.source, task.w->k);
  pack_blocks(*task.w, task.source, task.rows + skip, task.up == nullptr ? nullptr : task.up + skip, first, last);
}

struct LinearTask {
  Pool* pool;
  LinearArgs args;
  const float* x;
  int64_t ldx;
  void* acts;
  int32_t repeats;
};

void linear_part(void* context, int tid, int threads) {
  const LinearTask& task = *static_cast<const LinearTask*>(context);
  const PackedWeight& w = *task.args.w;
  const int64_t m = task.args.m;
  for (int32_t i = 0; i < task.repeats; ++i) {
    prepare_rows(w.format, w.k, w.group, task.x, task.ldx, m, m * tid / threads, m * (tid + 1) / threads, task.acts);
    task.pool->barrier();
    linear(task.args, tid, threads);
    if (i + 1 < task.repeats) task.pool->barrier();
  }
}

struct LimitTask {
  const uint8_t* data;
  int64_t bytes, repeats;
  int32_t (*spin)(int64_t iterations, const uint8_t* row) = nullptr;
  std::atomic<int32_t> sink{0};
};

void spin_part(void* context, int, int) {
  LimitTask& task = *static_cast<LimitTask*>(context);
  task.sink += task.spin(task.repeats, task.data);
}

void read_part(void* context, int tid, int threads) {
  LimitTask& task = *static_cast<LimitTask*>(context);
  const int64_t share = task.bytes / threads / 256 * 256;
  for (int64_t i = 0; i < task.repeats; ++i) task.sink += gemm_kernels().read_memory(task.data + share * tid, share);
}

}  // namespace

HR_API int32_t hr_abi_version() { return kAbiVersion; }

// ---- ISA ------------------------------------------------------------------------------------------------------------------------
// Detection at load: permission for AMX tiles must be asked before any thread starts.
static bool tiles_failed = false;
__attribute__((constructor)) static void detect_at_load() {
  if (active_isa() != Isa::Amx || tiles_agree_with_avx512()) return;
  tiles_failed = true;
  disable_isa(Isa::Amx);
}

// 1 if this machine has AMX but its results were wrong at load: AVX-512 is used instead, and the user should be told.
HR_API int32_t hr_tiles_failed() { return tiles_failed; }
// The same test for the ISA in use, AMX or its emulation: 1 if it agrees with AVX-512.
HR_API int32_t hr_check_tiles() { return has_isa(Isa::Avx512Bf16) && tiles_agree_with_avx512(); }
HR_API const char* hr_isa() { return isa_name(active_isa()); }
HR_API const char* hr_isa_name(int32_t isa) { return isa >= 0 && isa < kNumIsas ? isa_name(static_cast<Isa>(isa)) : nullptr; }
HR_API int32_t hr_has_isa(int32_t isa) { return isa >= 0 && isa < kNumIsas && has_isa(static_cast<Isa>(isa)); }
HR_API int32_t hr_set_isa(const char* name) { return set_isa(name) ? kOk : kUnavailable; }

// ---- pool -----------------------------------------------------------------------------------------------------------------------
// `cpus`: threads entries or null. Returns null for a thread count outside 1 … 1024.
HR_API void* hr_pool_create(int32_t threads, const int32_t* cpus) {
  return threads < 1 || threads > kMaxThreads ? nullptr : new (std::nothrow) Pool(threads, cpus);
}
HR_API void hr_pool_destroy(void* pool) { delete static_cast<Pool*>(pool); }
HR_API int32_t hr_pool_threads(const void* pool) { return static_cast<const Pool*>(pool)->threads(); }
HR_API void hr_pool_pin_caller(const void* pool) { static_cast<const Pool*>(pool)->pin_caller(); }

// ---- sizes ----------------------------------------------------------------------------------------------------------------------
// -1 for a weight that is not valid.
HR_API int64_t hr_packed_bytes(const PackedWeight* w) { return is_valid(*w) ? packed_bytes(*w) : -1; }
HR_API int64_t hr_packed_blocks(const PackedWeight* w) { return is_valid(*w) ? weight_layout(*w).blocks : -1; }
HR_API int64_t hr_act_bytes(const PackedWeight* w, int64_t m) {
  return is_valid(*w) ? act_bytes(w->format, w->k, w->group, m) : -1;
}
HR_API int32_t hr_can_pack(int32_t source, const PackedWeight* w) {
  return is_valid(*w) && can_pack(static_cast<SourceFormat>(source), *w);
}

// ---- packing --------------------------------------------------------------------------------------------------------------------
// pack.h: pack_blocks, shared among the pool's threads.
HR_API int32_t hr_pack(void* pool, const PackedWeight* w, int32_t source, const void* rows, const void* up, int64_t block0,
                       int64_t block1) {
  if (!is_valid(*w) || !can_pack(static_cast<SourceFormat>(source), *w)) return kBadArgument;
  if (block0 < 0 || block1 < block0 || block1 > weight_layout(*w).blocks) return kBadArgument;
  if (rows == nullptr || (up == nullptr) == (w->interleaved != 0)) return kBadArgument;
  if (!is_aligned(w->base)) return kNotAligned;
  PackTask task{w, static_cast<SourceFormat>(source), static_cast<const uint8_t*>(rows), static_cast<const uint8_t*>(up),
                block0, block1};
  static_cast<Pool*>(pool)->run(pack_part, &task);
  return kOk;
}

// Decode logical rows row0 … row1-1 to out [row1-row0, k].
HR_API int32_t hr_unpack(const PackedWeight* w, int64_t row0, int64_t row1, float* out) {
  if (!is_valid(*w) || row0 < 0 || row1 > w->n) return kBadArgument;
  if (!is_aligned(w->base)) return kNotAligned;
  for (int64_t row = row0; row < row1; ++row) unpack_row(*w, row, out + (row - row0) * w->k);
  return kOk;
}

// ---- linear ---------------------------------------------------------------------------------------------------------------------
// Prepare x [m, ldx] alone, on the calling thread.
HR_API int32_t hr_prepare(const PackedWeight* w, const float* x, int64_t ldx, int64_t m, void* acts) {
  if (!is_valid(*w) || m < 0) return kBadArgument;
  if (!is_aligned(acts)) return kNotAligned;
  prepare_rows(w->format, w->k, w->group, x, ldx, m, 0, m, acts);
  return kOk;
}

// y [m, ldy] = epilogue(x [m, ldx] w^T + bias); acts: hr_act_bytes(w, m) of scratch. `repeats` > 1 does the same again in one
// wake of the pool: for measuring (with Epilogue::Add it adds again).
HR_API int32_t hr_linear(void* pool, const PackedWeight* w, const float* x, int64_t ldx, int64_t m, void* acts, float* y,
                         int64_t ldy, const float* bias, int32_t epilogue, int32_t activation, int32_t repeats) {
  if (!is_valid(*w) || m < 0 || epilogue < 0 || epilogue > 2 || activation < 0 || activation > 3) return kBadArgument;
  if ((epilogue == static_cast<int32_t>(Epilogue::Glu)) != (w->interleaved != 0)) return kBadArgument;
  if (!is_aligned(w->base) || !is_aligned(acts)) return kNotAligned;
  LinearTask task{static_cast<Pool*>(pool),
                  {w, acts, m, y, ldy, bias, static_cast<Epilogue>(epilogue), static_cast<Activation>(activation)},
                  x, ldx, acts, repeats};
  task.pool->run(linear_part, &task);
  return kOk;
}

// ---- limits ---------------------------------------------------------------------------------------------------------------------
// Multiply int8 in registers, `repeats` rounds on every thread; returns the multiply-adds done by all threads together.
HR_API int64_t hr_spin_int8(void* pool, int64_t repeats) {
  alignas(64) static const uint8_t row[64] = {1, 2, 3, 4};
  LimitTask task{row, 0, repeats, gemm_kernels().spin_int8};
  static_cast<Pool*>(pool)->run(spin_part, &task);
  return repeats * gemm_kernels().int8_chains * 64 * static_cast<Pool*>(pool)->threads();
}

// Multiply bf16 likewise.
HR_API int64_t hr_spin_bf16(void* pool, int64_t repeats) {
  alignas(64) static const uint16_t row[32] = {0x3F80, 0x3F80, 0x3F80, 0x3F80};  // ones
  LimitTask task{reinterpret_cast<const uint8_t*>(row), 0, repeats, gemm_kernels().spin_bf16};
  static_cast<Pool*>(pool)->run(spin_part, &task);
  return repeats * gemm_kernels().bf16_chains * 32 * static_cast<Pool*>(pool)->threads();
}

// Read `bytes` at `data` (64-byte aligned) `repeats` times, an equal part on every thread; returns the bytes read.
HR_API int64_t hr_read_memory(void* pool, const void* data, int64_t bytes, int64_t repeats) {
  const int64_t threads = static_cast<Pool*>(pool)->threads();
  LimitTask task{static_cast<const uint8_t*>(data), bytes, repeats};
  static_cast<Pool*>(pool)->run(read_part, &task);
  return bytes / threads / 256 * 256 * threads * repeats;
}
