#include "cpu.h"

#include <atomic>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace headrace {
namespace {

constexpr const char* kNames[kNumIsas] = {"generic", "avx2", "avxvnni", "avx512", "avx512bf16", "amx", "neon", "amx-emulated"};

constexpr uint32_t bit(Isa isa) { return 1u << static_cast<int>(isa); }

#if defined(__x86_64__)
struct Regs {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Regs leaf(uint32_t id, uint32_t sub) {
  Regs r;
  if (!__get_cpuid_count(id, sub, &r.a, &r.b, &r.c, &r.d)) return Regs{};
  return r;
}

uint64_t xcr0() {
  uint32_t lo = 0, hi = 0;
  asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (static_cast<uint64_t>(hi) << 32) | lo;
}

bool on(uint32_t reg, int index) { return (reg >> index) & 1u; }

// Linux hands out the 8 KiB of tile state on request only (arch_prctl ARCH_REQ_XCOMP_PERM, component 18).
bool ask_for_tiles() {
#if defined(__linux__)
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

uint32_t detect() {
  uint32_t found = bit(Isa::Generic);
  const Regs l1 = leaf(1, 0), l7 = leaf(7, 0), l71 = leaf(7, 1);
  const bool osxsave = on(l1.c, 27);
  const uint64_t state = osxsave ? xcr0() : 0;
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xE6) == 0xE6, tiles = (state & 0x60000) == 0x60000;
  if (!(ymm && on(l1.c, 28) && on(l1.c, 12) && on(l1.c, 29) && on(l7.b, 5) && on(l7.b, 8))) return found;  // avx fma f16c avx2 bmi2
  found |= bit(Isa::Avx2);
  if (on(l71.a, 4)) found |= bit(Isa::AvxVnni);
  const bool avx512 = zmm && on(l7.b, 16) && on(l7.b, 17) && on(l7.b, 30) && on(l7.b, 31) && on(l7.c, 11);  // f dq bw vl vnni
  if (!avx512) return found;
  found |= bit(Isa::Avx512);
  if (!on(l71.a, 5)) return found;
  found |= bit(Isa::Avx512Bf16) | bit(Isa::AmxEmulated);
  if (tiles && on(l7.d, 22) && on(l7.d, 24) && on(l7.d, 25) && ask_for_tiles()) found |= bit(Isa::Amx);
  return found;
}
#elif defined(__aarch64__)
uint32_t detect() {
  uint32_t found = bit(Isa::Generic);
#if defined(__linux__)
  const unsigned long caps = getauxval(AT_HWCAP);
  const bool dotprod = caps & (1ul << 20), half = caps & (1ul << 10);  // HWCAP_ASIMDDP, HWCAP_ASIMDHP
  if (dotprod && half) found |= bit(Isa::Neon);
#elif defined(__APPLE__)
  found |= bit(Isa::Neon);  // every Apple Silicon core has both
#endif
  return found;
}
#else
uint32_t detect() { return bit(Isa::Generic); }
#endif

struct State {
  std::atomic<uint32_t> available;
  std::atomic<int32_t> active;

  State() : available(detect()), active(0) { active = static_cast<int32_t>(best()); }

  Isa best() const {
    for (Isa isa : {Isa::Neon, Isa::Amx, Isa::Avx512Bf16, Isa::Avx512, Isa::AvxVnni, Isa::Avx2}) {
      if (available & bit(isa)) return isa;
    }
    return Isa::Generic;
  }
};

State& state() {
  static State instance;
  return instance;
}

}  // namespace

bool has_isa(Isa isa) { return state().available & bit(isa); }
Isa best_isa() { return state().best(); }
Isa active_isa() { return static_cast<Isa>(state().active.load(std::memory_order_relaxed)); }
const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool set_isa(const char* name) {
  if (name == nullptr) return false;
  if (std::strcmp(name, "auto") == 0) {
    state().active = static_cast<int32_t>(best_isa());
    return true;
  }
  for (int i = 0; i < kNumIsas; ++i) {
    if (std::strcmp(name, kNames[i]) != 0) continue;
    if (!has_isa(static_cast<Isa>(i))) return false;
    state().active = i;
    return true;
  }
  return false;
}

void disable_isa(Isa isa) {
  state().available &= ~bit(isa);
  if (active_isa() == isa) state().active = static_cast<int32_t>(best_isa());
}

}  // namespace headrace
