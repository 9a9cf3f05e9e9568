// Instruction-set levels. The build compiles every kernels/cpu/*.cpp but isa.cpp once per level,
// with GENIMG_ISA naming the level; the caller selects the best one that the CPU supports.
//
// A kernel's header declares it in every level's namespace at once:
//     GENIMG_DECLARE_CPU_KERNEL(scale_f32, const float* x, float* y, int64_t n, float factor)
// its source defines it in the one that is being compiled:
//     namespace genimg::cpu::GENIMG_ISA { void scale_f32(const float* x, ...) { ... } }
// and csrc calls the best one:
//     GENIMG_CPU_KERNEL(scale_f32)(x, y, n, factor);
//
// Kernel sources call no inline function of the standard library: the linker keeps one copy of such
// a function for the whole program, and it might be the AVX-512 one.
#pragma once

#include <cstdint>

namespace genimg::cpu {

enum class Isa { baseline, avx2, avx512 };

// The level in use: the best of the CPU, or the lower one that GENIMG_CPU_ISA names; in a build for
// one level, that level. Throws std::runtime_error if GENIMG_CPU_ISA names no level, or one that
// this CPU or this build lacks.
Isa active_isa();

const char* isa_name(Isa isa);

#ifdef GENIMG_X86_LEVELS
#define GENIMG_DECLARE_CPU_KERNEL(name, ...) \
  namespace baseline {                       \
  void name(__VA_ARGS__);                    \
  }                                          \
  namespace avx2 {                           \
  void name(__VA_ARGS__);                    \
  }                                          \
  namespace avx512 {                         \
  void name(__VA_ARGS__);                    \
  }
#define GENIMG_CPU_KERNEL(name)                                                   \
  ::genimg::cpu::pick(&::genimg::cpu::baseline::name, &::genimg::cpu::avx2::name, \
                      &::genimg::cpu::avx512::name)

template <typename Kernel>
Kernel* pick(Kernel* baseline, Kernel* avx2, Kernel* avx512) {
  switch (active_isa()) {
    case Isa::avx512:
      return avx512;
    case Isa::avx2:
      return avx2;
    case Isa::baseline:
      break;
  }
  return baseline;
}
#else
#define GENIMG_DECLARE_CPU_KERNEL(name, ...) \
  namespace GENIMG_ONLY_ISA {                \
  void name(__VA_ARGS__);                    \
  }
#define GENIMG_CPU_KERNEL(name) \
  ((void)::genimg::cpu::active_isa(), &::genimg::cpu::GENIMG_ONLY_ISA::name)
#endif

}  // namespace genimg::cpu
