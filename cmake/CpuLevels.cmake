# The instruction-set levels that kernels/cpu/ is compiled for, lowest first.
include(CheckCXXCompilerFlag)

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
