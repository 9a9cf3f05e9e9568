# Runs after enable_language(CUDA). Sets GENIMG_CUDA_INCLUDE_DIRS, and links genimg_torch with torch's
# CUDA libraries and the runtime. find_package(CUDAToolkit) does not know the layout of the pip
# packages, which has no libcudart.so and no version file.
set(GENIMG_CUDA_NVCC "${GENIMG_NVCC_VERSION}")  # for the record, with the architectures
set(GENIMG_CUDA_ARCHS ${CMAKE_CUDA_ARCHITECTURES})

set(GENIMG_CUDA_INCLUDE_DIRS "")
foreach(root IN LISTS CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES)
  list(APPEND GENIMG_CUDA_INCLUDE_DIRS "${root}")
  if(EXISTS "${root}/cccl")
    list(APPEND GENIMG_CUDA_INCLUDE_DIRS "${root}/cccl")
  endif()
endforeach()
list(JOIN CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES ", " searched)
foreach(header cuda_runtime_api.h cuda_fp16.h nv/target)
  find_file(found ${header} PATHS ${GENIMG_CUDA_INCLUDE_DIRS} NO_DEFAULT_PATH NO_CACHE)
  if(NOT found)
    genimg_refuse("${header} is not among nvcc's headers "
                  "(in ${searched}); docs/building.md lists the "
                  "packages that nvcc needs")
  endif()
  unset(found)
endforeach()

if(GENIMG_COMPILE_ONLY)
  # A torch without CUDA has these headers but for one, which they leave out when this is defined.
  target_compile_definitions(genimg_torch INTERFACE C10_USING_CUSTOM_GENERATED_MACROS)
else()
  genimg_link_torch(c10_cuda torch_cuda)
  # The runtime that torch has loaded, which lies in a package beside it or in torch itself; the
  # toolkit's for a torch that was built on this machine.
  file(GLOB runtimes
    "${site_packages}/nvidia/cu${torch_cuda_major}/lib/libcudart.so.${torch_cuda_major}*"
    "${site_packages}/nvidia/cuda_runtime/lib/libcudart.so.${torch_cuda_major}*"
    "${GENIMG_TORCH_ROOT}/lib/libcudart*.so.${torch_cuda_major}*")
  foreach(directory IN LISTS CMAKE_CUDA_HOST_IMPLICIT_LINK_DIRECTORIES)
    file(GLOB more "${directory}/libcudart.so.${torch_cuda_major}*")
    list(APPEND runtimes ${more})
  endforeach()
  if(NOT runtimes)
    genimg_refuse("no libcudart.so.${torch_cuda_major} was found")
  endif()
  list(GET runtimes 0 GENIMG_CUDART)
  target_link_libraries(genimg_torch INTERFACE "${GENIMG_CUDART}")
endif()
