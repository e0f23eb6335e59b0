// The ISA-free side of linear.h: sizes, the choice of kernels, and each thread's share of the work.
#include "linear.h"

#include "cpu.h"
#include "gemm.h"
#include "layout.h"

namespace headrace {
const GemmKernels& gemm_kernels() {
  switch (active_isa()) {
#if HEADRACE_HAS_AVX2
    case Isa::Avx2:
      return kGemmAvx2;
    case Isa::AvxVnni:
      return kGemmAvxVnni;
#endif
#if HEADRACE_HAS_AVX512
    case Isa::Avx512:
      return kGemmAvx512;
    case Isa::Avx512Bf16:
      return kGemmAvx512Bf16;
    case Isa::AmxEmulated:
      return kGemmAmxEmulated;
#endif
#if HEADRACE_HAS_AMX
    case Isa::Amx:
      return kGemmAmx;
#endif
#if HEADRACE_HAS_NEON
    case Isa::Neon:
      return kGemmNeon;
#endif
    default:
      return kGemmGeneric;
  }
}

namespace {

// Row parts, so that the blocks of a narrow layer can be shared evenly: 9 blocks on 2 threads cost 5 blocks of time, 18
// halves cost 9 halves. Parts keep at least 32 rows: below that a second pass over the weights costs more.
int64_t row_parts(int64_t blocks, int64_t m, int threads) {
  int64_t parts = 1;
  while (blocks * parts < 16 * threads && m / (parts + 1) >= 32) ++parts;
  return parts;
}

}  // namespace

int64_t packed_bytes(WeightFormat format, int64_t n, int64_t k, int32_t group, int32_t asymmetric) {
  const WeightLayout l = weight_layout(format, n, k, group, asymmetric);
  return l.blocks * l.block_bytes;
}

int64_t packed_bytes(const PackedWeight& w) {
  return packed_bytes(w.format, packed_columns(w.n, w.interleaved), w.k, w.group, w.asymmetric);
}

int64_t act_row_bytes(WeightFormat format, int64_t k, int32_t group) { return act_layout(format, k, group).row_bytes; }

int64_t act_bytes(WeightFormat format, int64_t k, int32_t group, int64_t m) { return m * act_row_bytes(format, k, group); }

void prepare_rows(WeightFormat format, int64_t k, int32_t group, const float* x, int64_t ldx, int64_t, int64_t m0,
                  int64_t m1, void* acts) {
  gemm_kernels().prepare(format, k, group, x, ldx, m0, m1, acts);
}

void linear(const LinearArgs& args, int tid, int threads) {
  const GemmKernels& chosen = gemm_kernels();
  const int64_t blocks = weight_layout(*args.w).blocks;
  const int64_t parts = row_parts(blocks, args.m, threads);
  const auto row_of = [&](int64_t part) { return args.m * part / parts; };
  int64_t unit = blocks * parts * tid / threads;
  const int64_t end = blocks * parts * (tid + 1) / threads;
  while (unit < end) {
    const int64_t block = unit / parts, part = unit % parts;
    if (part == 0 && end - unit >= parts) {  // whole blocks in one go
      const int64_t whole = (end - unit) / parts;
      chosen.linear(args, {block, block + whole, 0, args.m});
      unit += whole * parts;
    } else {
      const int64_t stop = part + (end - unit) < parts ? part + (end - unit) : parts;
      chosen.linear(args, {block, block + 1, row_of(part), row_of(stop)});
      unit += stop - part;
    }
  }
}

}  // namespace headrace
