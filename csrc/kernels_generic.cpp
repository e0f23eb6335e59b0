// The kernels for the generic level, from the shared sources.
#define HR_ISA kernels_generic
#define HR_LANES 4
#include "attn_impl.h"
#include "elt_impl.h"

namespace headrace {

extern const Kernels kKernelsGeneric = {
    kernels_generic::rms_norm,
    kernels_generic::scale,
    kernels_generic::qk_write,
    kernels_generic::attention,
    kernels_generic::attention_merge,
    kernels_generic::finish_logits,
    kernels_generic::scan_logits,
    kernels_generic::sum_exp,
    kernels_generic::collect_ge,
};

}  // namespace headrace
