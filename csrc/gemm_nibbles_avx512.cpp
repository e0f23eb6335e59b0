// Linear layers on AVX-512: int4 in groups.
#include "gemm_avx512_vec.h"

namespace headrace {

void nibbles_avx512(const LinearArgs& args, const Share& share) { linear_nibbles<Avx512<true>>(args, share); }

}  // namespace headrace
