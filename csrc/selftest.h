// Proof at load that the tile path computes what AVX-512 computes, on this very machine.
#pragma once

namespace headrace {

// Run a small int8 and a small bf16 layer with many row counts on the active ISA's kernels and on AVX-512's. True if int8
// agrees bit for bit and bf16 to rounding. Needs Isa::Avx512Bf16. Takes about a millisecond.
bool tiles_agree_with_avx512();

}  // namespace headrace
