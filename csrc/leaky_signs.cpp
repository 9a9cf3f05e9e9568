// genimg::leaky_signs and genimg::leaky_signs_bwd: a LeakyReLU's gradient from one bit a value. The
// bits stay valid when the output is edited in place, and need less memory than input or output.
#include "../kernels/cpu/leaky_signs.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "cpu/huge_pages.h"
#include "dispatch.h"

namespace genimg {
namespace {

constexpr int64_t kGrain = 128;  // groups

int64_t groups_of(int64_t values) { return (values + cpu::kSignGroup - 1) / cpu::kSignGroup; }

void check_dense(const char* op, const char* name, const at::Tensor& x) {
  TORCH_CHECK(x.is_non_overlapping_and_dense(), op, ": expected ", name, " to be dense, but got ",
              x.sizes(), " with strides ", x.strides());
}

// y > 0 (under a slope of 0: not y <= 0) of y's values in the order of memory.
at::Tensor leaky_signs_cpu(const at::Tensor& y, double negative_slope) {
  const char* op = "leaky_signs";
  check_dense(op, "y", y);
  check_cpu_dtype(op, y.scalar_type());
  const int64_t n = y.numel(), groups = groups_of(n);
  const auto slope = static_cast<float>(negative_slope);
  at::Tensor signs = at::empty({groups * cpu::kSignBytes}, y.options().dtype(at::kByte));
  const void* from = y.const_data_ptr();
  uint8_t* to = signs.mutable_data_ptr<uint8_t>();
  const bool bf16 = y.scalar_type() == at::kBFloat16;
  at::parallel_for(0, groups, kGrain, [&](int64_t begin, int64_t end) {
    if (bf16) {
      GENIMG_CPU_KERNEL(leaky_signs_bf16)
      (static_cast<const uint16_t*>(from), n, slope, to, begin, end);
    } else {
      GENIMG_CPU_KERNEL(leaky_signs_f32)(static_cast<const float*>(from), n, slope, to, begin, end);
    }
  });
  return signs;
}

// grad_y where the bit is set, else negative_slope * grad_y; grad_y is dense in y's order.
at::Tensor leaky_signs_bwd_cpu(const at::Tensor& grad_y, const at::Tensor& signs,
                               double negative_slope) {
  const char* op = "leaky_signs_bwd";
  check_dense(op, "grad_y", grad_y);
  check_cpu_dtype(op, grad_y.scalar_type());
  const int64_t n = grad_y.numel(), groups = groups_of(n);
  TORCH_CHECK(signs.scalar_type() == at::kByte && signs.is_contiguous() &&
                  signs.numel() == groups * cpu::kSignBytes,
              op, ": expected signs of ", n, " values, but got ", signs.scalar_type(), " ",
              signs.sizes());
  const auto slope = static_cast<float>(negative_slope);
  at::Tensor grad_x = at::empty_like(grad_y);
  prefer_huge_pages(grad_x.mutable_data_ptr(), grad_x.nbytes());
  const void* from = grad_y.const_data_ptr();
  const uint8_t* bits = signs.const_data_ptr<uint8_t>();
  void* to = grad_x.mutable_data_ptr();
  const bool bf16 = grad_y.scalar_type() == at::kBFloat16;
  at::parallel_for(0, groups, kGrain, [&](int64_t begin, int64_t end) {
    if (bf16) {
      GENIMG_CPU_KERNEL(leaky_signs_bwd_bf16)
      (static_cast<const uint16_t*>(from), bits, n, slope, static_cast<uint16_t*>(to), begin, end);
    } else {
      GENIMG_CPU_KERNEL(leaky_signs_bwd_f32)
      (static_cast<const float*>(from), bits, n, slope, static_cast<float*>(to), begin, end);
    }
  });
  return grad_x;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(genimg, m) {
  m.def("leaky_signs(Tensor y, float negative_slope) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("leaky_signs_bwd(Tensor grad_y, Tensor signs, float negative_slope) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(genimg, CPU, m) {
  m.impl("leaky_signs", leaky_signs_cpu);
  m.impl("leaky_signs_bwd", leaky_signs_bwd_cpu);
}

}  // namespace genimg
