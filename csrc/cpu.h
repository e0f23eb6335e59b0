// What this CPU can do, and which instruction set the kernels use.
//
// Owns: the chosen ISA, the only mutable global of the library. Detection happens once, on first use; on x86 it also asks
// the kernel for permission to use AMX, which has to come before worker threads start (the loader calls it at once).
//
// Levels of x86 form a chain, each includes the ones below: Generic < Avx2 < AvxVnni < Avx512 (F BW VL DQ VNNI)
// < Avx512Bf16 < Amx (tile, int8, bf16). A file compiled for a level may be entered only if has_isa(level).
// AmxEmulated runs the AMX path's code on AVX-512 machines with each tile instruction emulated: for tests, never the best.
#pragma once
#include <cstdint>

namespace headrace {

enum class Isa : int32_t { Generic = 0, Avx2 = 1, AvxVnni = 2, Avx512 = 3, Avx512Bf16 = 4, Amx = 5, Neon = 6, AmxEmulated = 7 };
constexpr int kNumIsas = 8;

// True if this build has code for `isa` and this CPU (and kernel) can run it.
bool has_isa(Isa isa);

Isa best_isa();

// The ISA in use: best_isa() unless set_isa changed it.
Isa active_isa();

// "generic", "avx2", "avxvnni", "avx512", "avx512bf16", "amx", "neon", "amx-emulated"
const char* isa_name(Isa isa);

// Force an ISA by name ("auto": the best). False if the name is unknown or has_isa is false; nothing changes then.
// Not while a task runs.
bool set_isa(const char* name);

// Take an ISA out of service for this process: a self-test failed. Not while a task runs.
void disable_isa(Isa isa);

}  // namespace headrace
