# The instruction-set levels that kernels/cpu/ is compiled for, lowest first, and the macro that tells
# kernels/cpu/isa.h.
include(CheckCXXCompilerFlag)
include(CheckCXXSourceRuns)

set(GENIMG_CPU_LEVEL "" CACHE STRING
    "Build this level alone: baseline, avx2, avx512, or native, the best of this machine's CPU")

set(GENIMG_CPU_LEVELS baseline)
set(GENIMG_CPU_FLAGS_baseline "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
  check_cxx_compiler_flag(-march=x86-64-v2 GENIMG_CXX_HAS_V2)
  if(GENIMG_CXX_HAS_V2)  # all four came with gcc 11 and clang 12
    set(GENIMG_CPU_LEVELS baseline avx2 avx512)
    set(GENIMG_CPU_FLAGS_baseline -march=x86-64-v2)
    set(GENIMG_CPU_FLAGS_avx2 -march=x86-64-v3)
    # Compilers' default of 256 bits was for CPUs that slowed down at 512.
    set(GENIMG_CPU_FLAGS_avx512 -march=x86-64-v4 -mprefer-vector-width=512)
  endif()
endif()

set(level "${GENIMG_CPU_LEVEL}")
if(level STREQUAL "native")
  set(level baseline)
  set(GENIMG_CPU_FEATURE_avx2 avx2)
  set(GENIMG_CPU_FEATURE_avx512 avx512vl)
  foreach(better IN LISTS GENIMG_CPU_LEVELS)
    if(GENIMG_CPU_FEATURE_${better})
      check_cxx_source_runs("
        int main() {
          __builtin_cpu_init();
          return !__builtin_cpu_supports(\"${GENIMG_CPU_FEATURE_${better}}\");
        }" GENIMG_CPU_HAS_${better})
      if(GENIMG_CPU_HAS_${better})
        set(level ${better})
      endif()
    endif()
  endforeach()
endif()
if(level)
  if(NOT level IN_LIST GENIMG_CPU_LEVELS)
    list(JOIN GENIMG_CPU_LEVELS ", " known)
    genimg_refuse("GENIMG_CPU_LEVEL=${GENIMG_CPU_LEVEL}: expected native, ${known}")
  endif()
  set(GENIMG_CPU_LEVELS ${level})
endif()
list(LENGTH GENIMG_CPU_LEVELS levels)
if(levels EQUAL 1)
  set(GENIMG_CPU_MACRO "GENIMG_ONLY_ISA=${GENIMG_CPU_LEVELS}")
else()
  set(GENIMG_CPU_MACRO GENIMG_X86_LEVELS)
endif()
