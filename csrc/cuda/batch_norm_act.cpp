// genimg::batch_norm_act on a GPU: memory from torch's allocator, the current stream.
#ifdef GENIMG_WITH_CUDA
#include "../../kernels/cuda/batch_norm_act.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "../../kernels/cuda/batch_norm_act_single_pass.h"
#include "../batch_norm_act.h"
#include "../dispatch.h"

namespace genimg {
namespace {

using norm::Floats;
using norm::Optional;

cuda::BatchNormActShape shape_of(const Layout& layout) {
  return {layout.pixels,       layout.batch,          layout.channels,    layout.plane,
          layout.batch_stride, layout.channel_stride, layout.pixel_stride};
}

// Partial results, and the counters by which the last block is found.
struct Scratch {
  Scratch(const cuda::BatchNormActShape& shape, const at::TensorOptions& options)
      : floats(at::empty({cuda::batch_norm_act_scratch(shape)}, options)),
        tickets(at::zeros({shape.channels}, options.dtype(at::kInt))),
        floats_ptr(floats.mutable_data_ptr<float>()),
        tickets_ptr(static_cast<unsigned*>(tickets.mutable_data_ptr())) {}

  const at::Tensor floats, tickets;
  float* const floats_ptr;
  unsigned* const tickets_ptr;
};

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_act_fwd_cuda(
    const at::Tensor& x, const Optional& weight, const Optional& bias, const Optional& running_mean,
    const Optional& running_var, bool training, double eps, double negative_slope) {
  const char* op = "batch_norm_act_fwd";
  norm::check_forward(op, x, weight, bias, running_mean, running_var, training);
  const c10::cuda::CUDAGuard guard(x.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const ChannelView laid = channel_view(x);
  const auto shape = shape_of(laid.layout);
  const auto options = x.options().dtype(at::kFloat);
  at::Tensor mean = at::empty({shape.channels}, options),
             rstd = at::empty({shape.channels}, options),
             var = at::empty({training ? shape.channels : 0}, options);
  float* mean_ptr = mean.mutable_data_ptr<float>();
  float* rstd_ptr = rstd.mutable_data_ptr<float>();
  const Floats weights(weight), biases(bias);
  at::Tensor y = empty_in(laid, norm::output_format(laid, x, negative_slope));
  for_cuda_dtype(op, x.scalar_type(), [&]<typename T>(T) {
    const T* x_ptr = static_cast<const T*>(laid.x.const_data_ptr());
    T* y_ptr = static_cast<T*>(y.mutable_data_ptr());
    const auto slope = static_cast<float>(negative_slope);
    if (training && cuda::batch_norm_act_single_pass_serves<T>(shape, x_ptr, nullptr, y_ptr)) {
      C10_CUDA_CHECK(cuda::launch_batch_norm_act_single_pass_fwd(
          x_ptr, y_ptr, shape, weights.values, biases.values, static_cast<float>(eps), slope,
          mean_ptr, rstd_ptr, var.mutable_data_ptr<float>(), stream));
      return;
    }
    if (training) {
      const Scratch scratch(shape, options);
      C10_CUDA_CHECK(cuda::launch_batch_norm_act_stats(
          x_ptr, shape, static_cast<float>(eps), scratch.floats_ptr, scratch.tickets_ptr, mean_ptr,
          rstd_ptr, var.mutable_data_ptr<float>(), stream));
    } else {
      const Floats means(running_mean), vars(running_var);
      C10_CUDA_CHECK(cuda::launch_batch_norm_act_running(means.values, vars.values, shape.channels,
                                                         static_cast<float>(eps), mean_ptr,
                                                         rstd_ptr, stream));
    }
    C10_CUDA_CHECK(cuda::launch_batch_norm_act_fwd(
        x_ptr, y_ptr, shape, weights.values, biases.values, mean_ptr, rstd_ptr, slope, stream));
  });
  return {y, mean, rstd, var};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_act_bwd_cuda(
    const at::Tensor& grad_y, const at::Tensor& x, const Optional& weight, const Optional& bias,
    const at::Tensor& mean, const at::Tensor& rstd, bool training, double negative_slope,
    bool needs_grad_x) {
  const char* op = "batch_norm_act_bwd";
  norm::check_backward(op, grad_y, x, weight, bias, mean, rstd);
  const c10::cuda::CUDAGuard guard(x.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const ChannelView laid = channel_view(x);
  const auto shape = shape_of(laid.layout);
  const auto options = x.options().dtype(at::kFloat);
  at::Tensor grad_x = needs_grad_x
                          ? empty_in(laid, norm::grad_format(laid, x, grad_y, negative_slope))
                          : at::empty({0}, x.options());
  if (x.numel() == 0) {
    return {grad_x, at::zeros({shape.channels}, options), at::zeros({shape.channels}, options)};
  }
  const Floats weights(weight), biases(bias), means(mean), rstds(rstd);
  const at::Tensor grad = in_order_of(laid, grad_y);
  at::Tensor grad_weight = at::empty({shape.channels}, options),
             grad_bias = at::empty({shape.channels}, options);
  float* grad_weight_ptr = grad_weight.mutable_data_ptr<float>();
  float* grad_bias_ptr = grad_bias.mutable_data_ptr<float>();
  const auto slope = static_cast<float>(negative_slope);
  for_cuda_dtype(op, x.scalar_type(), [&]<typename T>(T) {
    const T* grad_ptr = static_cast<const T*>(grad.const_data_ptr());
    const T* x_ptr = static_cast<const T*>(laid.x.const_data_ptr());
    T* grad_x_ptr = needs_grad_x ? static_cast<T*>(grad_x.mutable_data_ptr()) : nullptr;
    if (training && needs_grad_x &&
        cuda::batch_norm_act_single_pass_serves<T>(shape, x_ptr, grad_ptr, grad_x_ptr)) {
      C10_CUDA_CHECK(cuda::launch_batch_norm_act_single_pass_bwd(
          grad_ptr, x_ptr, grad_x_ptr, shape, weights.values, biases.values, means.values,
          rstds.values, slope, grad_weight_ptr, grad_bias_ptr, stream));
      return;
    }
    const Scratch scratch(shape, options);
    C10_CUDA_CHECK(cuda::launch_batch_norm_act_sums(
        grad_ptr, x_ptr, shape, weights.values, biases.values, means.values, rstds.values, slope,
        scratch.floats_ptr, scratch.tickets_ptr, grad_weight_ptr, grad_bias_ptr, stream));
    if (!needs_grad_x) return;
    // Running statistics do not depend on x.
    C10_CUDA_CHECK(cuda::launch_batch_norm_act_bwd(
        grad_ptr, x_ptr, grad_x_ptr, shape, weights.values, biases.values, means.values,
        rstds.values, training ? grad_weight_ptr : nullptr, training ? grad_bias_ptr : nullptr,
        slope, stream));
  });
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(genimg, CUDA, m) {
  m.impl("batch_norm_act_fwd", batch_norm_act_fwd_cuda);
  m.impl("batch_norm_act_bwd", batch_norm_act_bwd_cuda);
}

}  // namespace genimg
#endif
