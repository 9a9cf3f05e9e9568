// genimg::leaky_relu_fwd and genimg::leaky_relu_bwd. What they compute: genimg/ops/leaky_relu.py.
#include "../kernels/cpu/leaky_relu.h"

#include <ATen/TensorIterator.h>
#include <torch/library.h>

#include "checks.h"
#include "dispatch.h"
#include "memory_format.h"

#ifdef GENIMG_WITH_CUDA
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../kernels/cuda/leaky_relu.h"
#endif

namespace genimg {
namespace {

// TensorIterator allocates the result in the memory format of its inputs, merges adjacent
// dimensions, and distributes the ranges over torch's threads.
template <typename T, typename Kernel>
void fwd_range(at::TensorIterator& iter, Kernel kernel, float slope) {
  iter.for_each([=](char** data, const int64_t* strides, int64_t n) {
    kernel(reinterpret_cast<const T*>(data[1]), strides[1] / int64_t{sizeof(T)},
           reinterpret_cast<T*>(data[0]), strides[0] / int64_t{sizeof(T)}, n, slope);
  });
}

template <typename T, typename Kernel>
void bwd_range(at::TensorIterator& iter, Kernel kernel, float slope) {
  iter.for_each([=](char** data, const int64_t* strides, int64_t n) {
    kernel(reinterpret_cast<const T*>(data[2]), strides[2] / int64_t{sizeof(T)},
           reinterpret_cast<const T*>(data[1]), strides[1] / int64_t{sizeof(T)},
           reinterpret_cast<T*>(data[0]), strides[0] / int64_t{sizeof(T)}, n, slope);
  });
}

at::Tensor leaky_relu_fwd_cpu(const at::Tensor& x, double negative_slope) {
  const auto slope = static_cast<float>(negative_slope);
  auto iter =
      at::TensorIteratorConfig().add_owned_output(at::TensorBase()).add_const_input(x).build();
  switch (x.scalar_type()) {
    case at::kFloat:
      fwd_range<float>(iter, GENIMG_CPU_KERNEL(leaky_relu_fwd_f32), slope);
      break;
    case at::kBFloat16:
      fwd_range<uint16_t>(iter, GENIMG_CPU_KERNEL(leaky_relu_fwd_bf16), slope);
      break;
    default:
      refuse_dtype("leaky_relu_fwd", x.scalar_type(), "float32 and bfloat16");
  }
  return iter.output();
}

at::Tensor leaky_relu_bwd_cpu(const at::Tensor& grad_y, const at::Tensor& x,
                              double negative_slope) {
  check_like("leaky_relu_bwd", "x", x, "grad_y", grad_y);
  const auto slope = static_cast<float>(negative_slope);
  // x before grad_y: where their memory formats differ, the gradient takes x's.
  auto iter = at::TensorIteratorConfig()
                  .add_owned_output(at::TensorBase())
                  .add_const_input(x)
                  .add_const_input(grad_y)
                  .build();
  switch (x.scalar_type()) {
    case at::kFloat:
      bwd_range<float>(iter, GENIMG_CPU_KERNEL(leaky_relu_bwd_f32), slope);
      break;
    case at::kBFloat16:
      bwd_range<uint16_t>(iter, GENIMG_CPU_KERNEL(leaky_relu_bwd_bf16), slope);
      break;
    default:
      refuse_dtype("leaky_relu_bwd", x.scalar_type(), "float32 and bfloat16");
  }
  return iter.output();
}

#ifdef GENIMG_WITH_CUDA

// x's values in the memory order of `like`, which is dense.
at::Tensor in_order_of(const at::Tensor& like, const at::Tensor& x) {
  return x.strides() == like.strides() ? x : at::empty_like(like).copy_(x);
}

at::Tensor leaky_relu_fwd_cuda(const at::Tensor& x, double negative_slope) {
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor y = empty_elementwise(x);
  const at::Tensor dense = in_order_of(y, x);
  for_cuda_dtype("leaky_relu_fwd", x.scalar_type(), [&]<typename T>(T) {
    C10_CUDA_CHECK(cuda::launch_leaky_relu_fwd(
        static_cast<const T*>(dense.const_data_ptr()), static_cast<T*>(y.mutable_data_ptr()),
        x.numel(), static_cast<float>(negative_slope), c10::cuda::getCurrentCUDAStream()));
  });
  return y;
}

at::Tensor leaky_relu_bwd_cuda(const at::Tensor& grad_y, const at::Tensor& x,
                               double negative_slope) {
  check_like("leaky_relu_bwd", "x", x, "grad_y", grad_y);
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor grad_x = grad_y.is_contiguous() ? empty_elementwise(x) : at::empty_like(x);
  const at::Tensor dense = in_order_of(grad_x, x);
  const at::Tensor dense_grad = in_order_of(grad_x, grad_y);
  for_cuda_dtype("leaky_relu_bwd", x.scalar_type(), [&]<typename T>(T) {
    C10_CUDA_CHECK(cuda::launch_leaky_relu_bwd(
        static_cast<const T*>(dense_grad.const_data_ptr()),
        static_cast<const T*>(dense.const_data_ptr()), static_cast<T*>(grad_x.mutable_data_ptr()),
        x.numel(), static_cast<float>(negative_slope), c10::cuda::getCurrentCUDAStream()));
  });
  return grad_x;
}

#endif

}  // namespace

TORCH_LIBRARY_FRAGMENT(genimg, m) {
  m.def("leaky_relu_fwd(Tensor x, float negative_slope) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("leaky_relu_bwd(Tensor grad_y, Tensor x, float negative_slope) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(genimg, CPU, m) {
  m.impl("leaky_relu_fwd", leaky_relu_fwd_cpu);
  m.impl("leaky_relu_bwd", leaky_relu_bwd_cpu);
}

#ifdef GENIMG_WITH_CUDA
TORCH_LIBRARY_IMPL(genimg, CUDA, m) {
  m.impl("leaky_relu_fwd", leaky_relu_fwd_cuda);
  m.impl("leaky_relu_bwd", leaky_relu_bwd_cuda);
}
#endif

}  // namespace genimg
