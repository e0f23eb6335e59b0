// The kernel table of the active instruction set.
#include "kernels.h"

#include "cpu.h"

namespace headrace {

const Kernels& kernels() {
  const Isa isa = active_isa();
#if defined(HEADRACE_HAS_AVX512)
  if (isa == Isa::Avx512Bf16 || isa == Isa::Amx) return kKernelsAvx512;
#endif
#if defined(HEADRACE_HAS_AVX2)
  if (isa == Isa::Avx2 || isa == Isa::AvxVnni || isa == Isa::Avx512) return kKernelsAvx2;
#endif
  return kKernelsGeneric;
}

}  // namespace headrace
