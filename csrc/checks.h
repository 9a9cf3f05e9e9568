// One wording for every check. The Python ops check what users pass; these guard the raw
// torch.ops.genimg.* calls, which anybody can make.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace genimg {

inline void check_same_shape(const char* op, const char* a_name, const at::Tensor& a,
                             const char* b_name, const at::Tensor& b) {
  TORCH_CHECK(a.sizes() == b.sizes(), op, ": expected ", b_name, " to have the shape of ", a_name,
              ", ", a.sizes(), ", but got ", b.sizes());
}

inline void check_same_dtype(const char* op, const char* a_name, const at::Tensor& a,
                             const char* b_name, const at::Tensor& b) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), op, ": expected ", b_name,
              " to have the dtype of ", a_name, ", ", a.scalar_type(), ", but got ",
              b.scalar_type());
}

inline void check_same_device(const char* op, const char* a_name, const at::Tensor& a,
                              const char* b_name, const at::Tensor& b) {
  TORCH_CHECK(a.device() == b.device(), op, ": expected ", b_name, " to be on the device of ",
              a_name, ", ", a.device(), ", but got ", b.device());
}

inline void check_like(const char* op, const char* a_name, const at::Tensor& a, const char* b_name,
                       const at::Tensor& b) {
  check_same_device(op, a_name, a, b_name, b);
  check_same_dtype(op, a_name, a, b_name, b);
  check_same_shape(op, a_name, a, b_name, b);
}

}  // namespace genimg
