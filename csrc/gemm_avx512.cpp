// Linear layers on AVX-512 with VNNI, those in groups apart (gemm_bytes_avx512, gemm_nibbles_avx512); bf16 products by AVX512_BF16 or, on CPUs without it, by fp32 fma.
#include "gemm_avx512_vec.h"

namespace headrace {

extern const GemmKernels kGemmAvx512 = kernels_for<Avx512<true>, Avx512<false>>();
extern const GemmKernels kGemmAvx512Bf16 = kernels_for<Avx512<true>>();

}  // namespace headrace
