// The kernels for the avx2 level, from the shared sources.
#define HR_ISA kernels_avx2
#define HR_LANES 8
#include "attn_impl.h"
#include "elt_impl.h"

namespace headrace {

extern const Kernels kKernelsAvx2 = {
    kernels_avx2::rms_norm,
    kernels_avx2::scale,
    kernels_avx2::qk_write,
    kernels_avx2::attention,
    kernels_avx2::attention_merge,
    kernels_avx2::finish_logits,
    kernels_avx2::scan_logits,
    kernels_avx2::sum_exp,
    kernels_avx2::collect_ge,
};

}  // namespace headrace
