# Asks the interpreter's own torch where its headers and libraries are. find_package(Torch) would
# stop a CPU build wherever torch is a CUDA build and no CUDA toolkit is installed.
execute_process(
  COMMAND
    ${Python_EXECUTABLE} -c
    "import pathlib, torch; root = pathlib.Path(torch.__file__).parent
print(root / 'include', root / 'include/torch/csrc/api/include', sep=';')
print(root / 'lib')
print(int(torch.compiled_with_cxx11_abi()))"
  OUTPUT_VARIABLE torch_answer
  RESULT_VARIABLE torch_failed)
if(torch_failed)
  message(FATAL_ERROR "${Python_EXECUTABLE} cannot import torch")
endif()
string(REPLACE ";" "|" torch_answer "${torch_answer}")
string(REPLACE "\n" ";" torch_answer "${torch_answer}")
list(GET torch_answer 0 TORCH_INCLUDE_DIRS)
string(REPLACE "|" ";" TORCH_INCLUDE_DIRS "${TORCH_INCLUDE_DIRS}")
list(GET torch_answer 1 TORCH_LIBRARY_DIR)
list(GET torch_answer 2 TORCH_CXX11_ABI)

add_library(genimg_torch INTERFACE)
target_include_directories(genimg_torch SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
target_compile_definitions(genimg_torch INTERFACE _GLIBCXX_USE_CXX11_ABI=${TORCH_CXX11_ABI})
set(torch_libraries torch torch_cpu c10)
if(GENIMG_CUDA)
  list(APPEND torch_libraries torch_cuda c10_cuda)
endif()
foreach(name IN LISTS torch_libraries)
  find_library(TORCH_LIBRARY_${name} ${name} PATHS ${TORCH_LIBRARY_DIR} NO_DEFAULT_PATH REQUIRED)
  target_link_libraries(genimg_torch INTERFACE ${TORCH_LIBRARY_${name}})
endforeach()
