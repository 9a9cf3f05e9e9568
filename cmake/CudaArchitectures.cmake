# CMAKE_CUDA_ARCHITECTURES from TORCH_CUDA_ARCH_LIST, as torch's own builds read it: "8.0 9.0a+PTX"
# is machine code for both and PTX of the second. Without it: the data-centre and desktop GPUs since
# Ampere, and PTX of the last for those to come.
if("$ENV{TORCH_CUDA_ARCH_LIST}" STREQUAL "")
  set(arch_list "8.0;9.0a;10.0;12.0+PTX")
else()
  string(REGEX REPLACE "[ ,]+" ";" arch_list "$ENV{TORCH_CUDA_ARCH_LIST}")
endif()
set(CMAKE_CUDA_ARCHITECTURES "")
foreach(arch IN LISTS arch_list)
  if(NOT arch MATCHES "^([0-9]+)\\.([0-9][af]?)(\\+PTX)?$")
    message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST: '${arch}' is not of the form 9.0, 9.0a or 9.0+PTX")
  endif()
  list(APPEND CMAKE_CUDA_ARCHITECTURES "${CMAKE_MATCH_1}${CMAKE_MATCH_2}-real")
  if(CMAKE_MATCH_3)
    list(APPEND CMAKE_CUDA_ARCHITECTURES "${CMAKE_MATCH_1}${CMAKE_MATCH_2}-virtual")
  endif()
endforeach()
