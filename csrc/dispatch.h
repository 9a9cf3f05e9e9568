// dtype -> template.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace genimg {

[[noreturn]] inline void refuse_dtype(const char* op, at::ScalarType dtype, const char* served) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, op, ": ", dtype, " is not served, only ", served);
}

}  // namespace genimg
