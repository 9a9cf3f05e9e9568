#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace genimg::cpu {
namespace {

// The best level that the CPU supports.
Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa choose_isa() {
#ifdef GENIMG_X86_LEVELS
  const Isa lowest = Isa::baseline;
  const Isa best = best_isa();
#else
  const Isa lowest = Isa::GENIMG_ONLY_ISA;
  const Isa best = lowest;
  if (best_isa() < lowest) {
    throw std::runtime_error(std::string("this build is for ") + isa_name(lowest) +
                             " alone, which this CPU does not have");
  }
#endif
  const char* wanted = std::getenv("GENIMG_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (int level = static_cast<int>(lowest); level <= static_cast<int>(best); ++level) {
    if (std::string(isa_name(static_cast<Isa>(level))) == wanted) return static_cast<Isa>(level);
  }
  throw std::runtime_error(
      std::string("GENIMG_CPU_ISA=") + wanted +
      " is not available here: expected baseline, avx2 or avx512, and at most " + isa_name(best) +
      ", the best level of this CPU in this build");
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::baseline:
      break;
  }
  return "baseline";
}

}  // namespace genimg::cpu
