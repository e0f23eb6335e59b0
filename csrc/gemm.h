// The table of one ISA's linear-layer kernels. Filled in gemm_<isa>.cpp, chosen in linear.cpp.
#pragma once
#include "linear.h"

namespace headrace {

// A share of a linear layer: column blocks block0 … block1-1, rows row0 … row1-1.
struct Share {
  int64_t block0, block1, row0, row1;
};

struct GemmKernels {
  void (*prepare)(WeightFormat format, int64_t k, int32_t group, const float* x, int64_t ldx, int64_t m0, int64_t m1,
                  void* acts);
  void (*linear)(const LinearArgs& args, const Share& share);
  // For measuring: dots of 16 columns x 4 bytes in registers, so many chains of them each time; plain reading.
  int32_t (*spin_int8)(int64_t iterations, const uint8_t* row);
  int32_t int8_chains;
  int32_t (*spin_bf16)(int64_t iterations, const uint8_t* row);
  int32_t bf16_chains;
  int32_t (*read_memory)(const uint8_t* p, int64_t bytes);
};

extern const GemmKernels kGemmGeneric;
#if HEADRACE_HAS_AVX2
extern const GemmKernels kGemmAvx2;
extern const GemmKernels kGemmAvxVnni;
#endif
#if HEADRACE_HAS_AVX512
extern const GemmKernels kGemmAvx512;
extern const GemmKernels kGemmAvx512Bf16;
extern const GemmKernels kGemmAmxEmulated;
#endif
#if HEADRACE_HAS_AMX
extern const GemmKernels kGemmAmx;
#endif
#if HEADRACE_HAS_NEON
extern const GemmKernels kGemmNeon;
#endif

// The table of the active ISA.
const GemmKernels& gemm_kernels();

}  // namespace headrace
