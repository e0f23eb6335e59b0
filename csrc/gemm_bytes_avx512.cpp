// Linear layers on AVX-512: int8 in groups, rotated or not.
#include "gemm_avx512_vec.h"

namespace headrace {

void bytes_in_groups_avx512(const LinearArgs& args, const Share& share) { linear_bytes_in_groups<Avx512<true>>(args, share); }

}  // namespace headrace
