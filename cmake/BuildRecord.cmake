# What was built, with what and why: _build.json, which genimg/_native.py reads before it loads the
# module, and the same text inside the module.
function(genimg_json_list variable)
  list(TRANSFORM ARGN REPLACE "(.+)" "\"\\1\"")
  list(JOIN ARGN ", " text)
  set(${variable} "[${text}]" PARENT_SCOPE)
endfunction()

set(record "{}")
foreach(fact IN ITEMS
    "kind=${GENIMG_KIND}"
    "reason=${GENIMG_REASON}"
    "genimg=${GENIMG_VERSION}"
    "python=${GENIMG_PYTHON_VERSION}"
    "torch=${GENIMG_TORCH_VERSION}"
    "torch_cuda=${GENIMG_TORCH_CUDA}"
    "compiler=${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
    "build_type=${CMAKE_BUILD_TYPE}"
    "sanitize=${GENIMG_SANITIZE}"
    "nvcc=${GENIMG_CUDA_NVCC}")
  string(REGEX MATCH "^([^=]+)=(.*)$" matched "${fact}")
  set(key "${CMAKE_MATCH_1}")
  string(REPLACE "\\" "\\\\" value "${CMAKE_MATCH_2}")
  string(REPLACE "\"" "\\\"" value "${value}")
  string(JSON record SET "${record}" "${key}" "\"${value}\"")
endforeach()
genimg_json_list(levels ${GENIMG_CPU_LEVELS})
string(JSON record SET "${record}" isas "${levels}")
genimg_json_list(archs ${GENIMG_CUDA_ARCHS})
string(JSON record SET "${record}" cuda_archs "${archs}")

file(CONFIGURE OUTPUT _build.json CONTENT "${record}\n" @ONLY)
file(CONFIGURE OUTPUT generated/build_record.h @ONLY CONTENT
"#pragma once

namespace genimg {
constexpr char kBuildRecord[] = R\"json(@record@)json\";
}
")
