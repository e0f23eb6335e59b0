// The kernels for the avx512 level, from the shared sources.
#define HR_ISA kernels_avx512
#define HR_LANES 16
#include "attn_impl.h"
#include "elt_impl.h"

namespace headrace {

extern const Kernels kKernelsAvx512 = {
    kernels_avx512::rms_norm,
    kernels_avx512::scale,
    kernels_avx512::qk_write,
    kernels_avx512::attention,
    kernels_avx512::attention_merge,
    kernels_avx512::finish_logits,
    kernels_avx512::scan_logits,
    kernels_avx512::sum_exp,
    kernels_avx512::collect_ge,
};

}  // namespace headrace
