# Asks this interpreter's torch for headers, libraries and ABI, and makes target genimg_torch.
# find_package(Torch) is no way: with a CUDA torch and no toolkit it stops even a CPU build.
find_package(Python REQUIRED COMPONENTS Interpreter)

# genimg_ask(code variable): what the code prints, or nothing if it fails.
function(genimg_ask code variable)
  execute_process(COMMAND "${Python_EXECUTABLE}" -c "${code}" OUTPUT_VARIABLE answer
                  RESULT_VARIABLE status OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT status EQUAL 0)
    set(answer "")
  endif()
  set(${variable} "${answer}" PARENT_SCOPE)
endfunction()

genimg_ask("
import os, sys, torch
root = os.path.dirname(torch.__file__)
print(torch.__version__, torch.version.cuda or '', root, int(torch.compiled_with_cxx11_abi()),
      '%d.%d' % sys.version_info[:2], sep=';')
" answer)
if(NOT answer)
  genimg_refuse("${Python_EXECUTABLE} cannot import torch: install it first, and build with "
                "--no-build-isolation")
endif()
list(GET answer 0 GENIMG_TORCH_VERSION)
list(GET answer 1 GENIMG_TORCH_CUDA)
list(GET answer 2 GENIMG_TORCH_ROOT)
list(GET answer 3 GENIMG_TORCH_CXX11_ABI)
list(GET answer 4 GENIMG_PYTHON_VERSION)

add_library(genimg_torch INTERFACE)
target_include_directories(genimg_torch SYSTEM INTERFACE "${GENIMG_TORCH_ROOT}/include")
target_compile_definitions(genimg_torch INTERFACE
  "_GLIBCXX_USE_CXX11_ABI=${GENIMG_TORCH_CXX11_ABI}")

# genimg_link_torch(name...): link these of torch's own libraries.
function(genimg_link_torch)
  foreach(name IN LISTS ARGV)
    find_library(GENIMG_LIB_${name} NAMES ${name} PATHS "${GENIMG_TORCH_ROOT}/lib"
                 NO_DEFAULT_PATH REQUIRED)
    target_link_libraries(genimg_torch INTERFACE "${GENIMG_LIB_${name}}")
  endforeach()
endfunction()
if(NOT GENIMG_COMPILE_ONLY)
  genimg_link_torch(c10 torch_cpu torch)
endif()
