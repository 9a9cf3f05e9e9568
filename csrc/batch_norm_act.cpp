// genimg::batch_norm_act_fwd and genimg::batch_norm_act_bwd. What they compute:
// genimg/ops/batch_norm_act.py.
#include "../kernels/cpu/batch_norm_act.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "channel_layout.h"
#include "checks.h"
#include "dispatch.h"
#include "memory_format.h"

#ifdef GENIMG_WITH_CUDA
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../kernels/cuda/batch_norm_act.h"
#include "../kernels/cuda/batch_norm_act_single_pass.h"
#endif

namespace genimg {
namespace {

using cpu::BatchNormActKernels;

template <typename T>
BatchNormActKernels<T> kernels() = delete;

template <>
BatchNormActKernels<float> kernels<float>() {
  BatchNormActKernels<float> table;
  GENIMG_CPU_KERNEL(batch_norm_act_f32)(&table);
  return table;
}

template <>
BatchNormActKernels<uint16_t> kernels<uint16_t>() {
  BatchNormActKernels<uint16_t> table;
  GENIMG_CPU_KERNEL(batch_norm_act_bf16)(&table);
  return table;
}

// A parameter as floats; null where there is none.
struct Floats {
  explicit Floats(const std::optional<at::Tensor>& parameter)
      : tensor(parameter ? parameter->to(at::kFloat).contiguous() : at::Tensor()),
        values(parameter ? tensor.const_data_ptr<float>() : nullptr) {}

  float at(int64_t c, float otherwise) const { return values ? values[c] : otherwise; }

  const at::Tensor tensor;
  const float* values;
};

void check_channels(const char* op, const char* name, const std::optional<at::Tensor>& parameter,
                    const at::Tensor& x) {
  if (!parameter) return;
  TORCH_CHECK(parameter->dim() == 1 && parameter->size(0) == x.size(1), op, ": expected ", name,
              " of shape [", x.size(1), "], but got ", parameter->sizes());
  check_same_device(op, "x", x, name, *parameter);
}

void check_input(const char* op, const at::Tensor& x) {
  TORCH_CHECK(x.dim() >= 2, op, ": expected x of shape [N, C, ...], but got ", x.sizes());
}

using Optional = std::optional<at::Tensor>;

void check_forward(const char* op, const at::Tensor& x, const Optional& weight,
                   const Optional& bias, const Optional& running_mean, const Optional& running_var,
                   bool training) {
  check_input(op, x);
  check_channels(op, "weight", weight, x);
  check_channels(op, "bias", bias, x);
  check_channels(op, "running_mean", running_mean, x);
  check_channels(op, "running_var", running_var, x);
  TORCH_CHECK(training || (running_mean && running_var), op,
              ": expected running statistics, since training=False");
  TORCH_CHECK(!training || x.numel() > x.size(1), op,
              ": expected more than 1 value per channel when training, got input size ", x.sizes());
}

void check_backward(const char* op, const at::Tensor& grad_y, const at::Tensor& x,
                    const Optional& weight, const Optional& bias, const at::Tensor& mean,
                    const at::Tensor& rstd) {
  check_input(op, x);
  check_like(op, "x", x, "grad_y", grad_y);
  check_channels(op, "weight", weight, x);
  check_channels(op, "bias", bias, x);
  check_channels(op, "mean", mean, x);
  check_channels(op, "rstd", rstd, x);
}

// torch's formats where a size of 1 lets both fit: its norm takes the contiguous one then, where
// its input does, and so does an activation behind it.
at::MemoryFormat output_format(const Laid& laid, const at::Tensor& x, double negative_slope) {
  const bool activated = negative_slope != 1 && fits_both_formats(x.sizes());
  return x.is_contiguous() || activated ? at::MemoryFormat::Contiguous : laid.format;
}

at::MemoryFormat grad_format(const Laid& laid, const at::Tensor& x, const at::Tensor& grad_y,
                             double negative_slope) {
  const bool plain = negative_slope == 1 && x.is_contiguous() &&
                     grad_y.suggest_memory_format() != at::MemoryFormat::Contiguous;
  return plain ? at::MemoryFormat::Contiguous : laid.format;
}

template <typename T>
void batch_moments(const Laid& laid, const Pieces& pieces, float* mean, float* var_biased,
                   float* var_unbiased) {
  const auto kernel = kernels<T>();
  const Layout& layout = laid.layout;
  const T* x = static_cast<const T*>(laid.x.const_data_ptr());
  std::vector<double> means(pieces.slots()), m2s(pieces.slots());
  pieces.each([&](int64_t piece) {
    double* piece_mean = means.data() + pieces.slot(piece);
    double* piece_m2 = m2s.data() + pieces.slot(piece);
    if (layout.pixels) {
      kernel.pixels_moments(x + pieces.offset(piece), pieces.size(piece), layout.channels,
                            layout.pixel_stride, piece_mean, piece_m2);
    } else {
      kernel.plane_moments(x + pieces.offset(piece), pieces.size(piece), piece_mean, piece_m2);
    }
  });
  const double count = static_cast<double>(layout.values_per_channel());
  // First the mean, then the pieces' spread about it and within them: nothing cancels, and an
  // infinite mean stays one.
  std::vector<double> total_means(layout.channels), total_m2s(layout.channels);
  pieces.in_order([&](int64_t c, int64_t slot, int64_t size) {
    total_means[c] += means[slot] * (static_cast<double>(size) / count);
  });
  pieces.in_order([&](int64_t c, int64_t slot, int64_t size) {
    const double delta = means[slot] - total_means[c];
    total_m2s[c] += m2s[slot] + delta * delta * static_cast<double>(size);
  });
  for (int64_t c = 0; c < layout.channels; ++c) {
    mean[c] = static_cast<float>(total_means[c]);
    var_biased[c] = static_cast<float>(total_m2s[c] / count);
    var_unbiased[c] = static_cast<float>(total_m2s[c] / (count - 1));
  }
}

struct PerChannel {
  explicit PerChannel(int64_t channels) : scale(channels), shift(channels) {}
  std::vector<float> scale, shift;
};

PerChannel forward_affine(int64_t channels, const Floats& weight, const Floats& bias,
                          const float* rstd) {
  PerChannel affine(channels);
  for (int64_t c = 0; c < channels; ++c) {
    affine.scale[c] = weight.at(c, 1) * rstd[c];
    affine.shift[c] = bias.at(c, 0);
  }
  return affine;
}

template <typename T>
void forward(const Laid& laid, const Pieces& pieces, const PerChannel& affine, const float* mean,
             float negative_slope, at::Tensor& y_tensor) {
  const auto kernel = kernels<T>();
  const Layout& layout = laid.layout;
  const T* x = static_cast<const T*>(laid.x.const_data_ptr());
  T* y = static_cast<T*>(y_tensor.mutable_data_ptr());
  pieces.each([&](int64_t piece) {
    const T* from = x + pieces.offset(piece);
    T* to = y + pieces.dense_offset(piece);
    if (layout.pixels) {
      kernel.pixels_fwd(from, to, pieces.size(piece), layout.channels, layout.pixel_stride,
                        {mean, affine.scale.data(), affine.shift.data(), negative_slope});
    } else {
      const int64_t c = pieces.channel(piece);
      kernel.plane_fwd(from, to, pieces.size(piece),
                       {mean[c], affine.scale[c], affine.shift[c], negative_slope});
    }
  });
}

// y, and mean, rstd and unbiased variance of the batch (in eval mode, what the running statistics
// give, and no variance).
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_act_fwd_cpu(
    const at::Tensor& x, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& running_mean,
    const std::optional<at::Tensor>& running_var, bool training, double eps,
    double negative_slope) {
  const char* op = "batch_norm_act_fwd";
  check_forward(op, x, weight, bias, running_mean, running_var, training);
  const Laid laid = lay_out(x);
  const Pieces pieces(laid.layout);
  const int64_t channels = x.size(1);
  const auto options = x.options().dtype(at::kFloat);
  at::Tensor mean = at::empty({channels}, options), rstd = at::empty({channels}, options),
             var = at::empty({training ? channels : 0}, options);
  float* mean_ptr = mean.mutable_data_ptr<float>();
  float* rstd_ptr = rstd.mutable_data_ptr<float>();
  if (training) {
    switch (x.scalar_type()) {
      case at::kFloat:
        batch_moments<float>(laid, pieces, mean_ptr, rstd_ptr, var.mutable_data_ptr<float>());
        break;
      case at::kBFloat16:
        batch_moments<uint16_t>(laid, pieces, mean_ptr, rstd_ptr, var.mutable_data_ptr<float>());
        break;
      default:
        refuse_dtype(op, x.scalar_type(), "float32 and bfloat16");
    }
  } else {
    mean.copy_(*running_mean);
    rstd.copy_(*running_var);
  }
  for (int64_t c = 0; c < channels; ++c) {
    rstd_ptr[c] = static_cast<float>(1 / std::sqrt(static_cast<double>(rstd_ptr[c]) + eps));
  }
  const PerChannel affine = forward_affine(channels, Floats(weight), Floats(bias), rstd_ptr);
  at::Tensor y = empty_in(laid, output_format(laid, x, negative_slope));
  const auto slope = static_cast<float>(negative_slope);
  switch (x.scalar_type()) {
    case at::kFloat:
      forward<float>(laid, pieces, affine, mean_ptr, slope, y);
      break;
    case at::kBFloat16:
      forward<uint16_t>(laid, pieces, affine, mean_ptr, slope, y);
      break;
    default:
      refuse_dtype(op, x.scalar_type(), "float32 and bfloat16");
  }
  return {y, mean, rstd, var};
}

template <typename T>
void backward_sums(const Laid& laid, const Pieces& pieces, const T* grad_y,
                   const PerChannel& affine, const float* mean, float negative_slope,
                   double* sum_dz, double* sum_dz_x) {
  const auto kernel = kernels<T>();
  const Layout& layout = laid.layout;
  const T* x = static_cast<const T*>(laid.x.const_data_ptr());
  std::vector<double> dz(pieces.slots()), dz_x(pieces.slots());
  pieces.each([&](int64_t piece) {
    const T* from = x + pieces.offset(piece);
    const T* grad = grad_y + pieces.dense_offset(piece);
    double* piece_dz = dz.data() + pieces.slot(piece);
    double* piece_dz_x = dz_x.data() + pieces.slot(piece);
    if (layout.pixels) {
      kernel.pixels_sums(grad, from, pieces.size(piece), layout.channels, layout.pixel_stride,
                         {mean, affine.scale.data(), affine.shift.data(), negative_slope}, piece_dz,
                         piece_dz_x);
    } else {
      const int64_t c = pieces.channel(piece);
      kernel.plane_sums(grad, from, pieces.size(piece),
                        {mean[c], affine.scale[c], affine.shift[c], negative_slope}, piece_dz,
                        piece_dz_x);
    }
  });
  std::fill(sum_dz, sum_dz + layout.channels, 0.0);
  std::fill(sum_dz_x, sum_dz_x + layout.channels, 0.0);
  pieces.in_order([&](int64_t c, int64_t slot, int64_t) {
    sum_dz[c] += dz[slot];
    sum_dz_x[c] += dz_x[slot];
  });
}

template <typename T>
void backward_apply(const Laid& laid, const Pieces& pieces, const T* grad_y,
                    const PerChannel& affine, const PerChannel& grad, const float* mean,
                    float negative_slope, bool training, T* grad_x) {
  const auto kernel = kernels<T>();
  const Layout& layout = laid.layout;
  const T* x = static_cast<const T*>(laid.x.const_data_ptr());
  pieces.each([&](int64_t piece) {
    const T* from = x + pieces.offset(piece);
    const int64_t dense = pieces.dense_offset(piece);
    if (layout.pixels) {
      kernel.pixels_bwd(grad_y + dense, from, grad_x + dense, pieces.size(piece), layout.channels,
                        layout.pixel_stride,
                        {{mean, affine.scale.data(), affine.shift.data(), negative_slope},
                         grad.scale.data(),
                         grad.shift.data(),
                         training});
    } else {
      const int64_t c = pieces.channel(piece);
      kernel.plane_bwd(grad_y + dense, from, grad_x + dense, pieces.size(piece),
                       {{mean[c], affine.scale[c], affine.shift[c], negative_slope},
                        grad.scale[c],
                        grad.shift[c],
                        training});
    }
  });
}

template <typename T>
void backward(const Laid& laid, const at::Tensor& grad_y_tensor, const PerChannel& affine,
              const float* mean, const float* rstd, bool training, float negative_slope,
              float* grad_weight, float* grad_bias, at::Tensor* grad_x) {
  const Pieces pieces(laid.layout);
  const int64_t channels = laid.layout.channels;
  const T* grad_y = static_cast<const T*>(grad_y_tensor.const_data_ptr());
  std::vector<double> sum_dz(channels), sum_dz_x(channels);
  backward_sums<T>(laid, pieces, grad_y, affine, mean, negative_slope, sum_dz.data(),
                   sum_dz_x.data());
  PerChannel grad(channels);
  const double count = static_cast<double>(laid.layout.values_per_channel());
  for (int64_t c = 0; c < channels; ++c) {
    grad_weight[c] = static_cast<float>(sum_dz_x[c] * rstd[c]);
    grad_bias[c] = static_cast<float>(sum_dz[c]);
    if (training) {
      const double r = rstd[c], scale = affine.scale[c];
      grad.scale[c] = static_cast<float>(-scale * r * r * sum_dz_x[c] / count);
      grad.shift[c] = static_cast<float>(-scale * sum_dz[c] / count);
    }
  }
  if (grad_x != nullptr) {
    backward_apply<T>(laid, pieces, grad_y, affine, grad, mean, negative_slope, training,
                      static_cast<T*>(grad_x->mutable_data_ptr()));
  }
}

// grad_x (empty if not needed), grad_weight and grad_bias in float32.
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_act_bwd_cpu(
    const at::Tensor& grad_y, const at::Tensor& x, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, const at::Tensor& mean, const at::Tensor& rstd,
    bool training, double negative_slope, bool needs_grad_x) {
  const char* op = "batch_norm_act_bwd";
  check_backward(op, grad_y, x, weight, bias, mean, rstd);
  const Laid laid = lay_out(x);
  const int64_t channels = x.size(1);
  const Floats means(mean), rstds(rstd);
  const PerChannel affine = forward_affine(channels, Floats(weight), Floats(bias), rstds.values);
  const auto options = x.options().dtype(at::kFloat);
  at::Tensor grad_weight = at::empty({channels}, options),
             grad_bias = at::empty({channels}, options);
  at::Tensor grad_x = needs_grad_x ? empty_in(laid, grad_format(laid, x, grad_y, negative_slope))
                                   : at::empty({0}, x.options());
  const auto run = [&]<typename T>(T) {
    backward<T>(laid, in_order_of(laid, grad_y), affine, means.values, rstds.values, training,
                static_cast<float>(negative_slope), grad_weight.mutable_data_ptr<float>(),
                grad_bias.mutable_data_ptr<float>(), needs_grad_x ? &grad_x : nullptr);
  };
  switch (x.scalar_type()) {
    case at::kFloat:
      run(float{});
      break;
    case at::kBFloat16:
      run(uint16_t{});
      break;
    default:
      refuse_dtype(op, x.scalar_type(), "float32 and bfloat16");
  }
  return {grad_x, grad_weight, grad_bias};
}

#ifdef GENIMG_WITH_CUDA

cuda::BatchNormActShape shape_of(const Layout& layout) {
  return {layout.pixels,       layout.batch,          layout.channels,    layout.plane,
          layout.batch_stride, layout.channel_stride, layout.pixel_stride};
}

// Partial results, and the tickets by which the last block is found.
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
  check_forward(op, x, weight, bias, running_mean, running_var, training);
  const c10::cuda::CUDAGuard guard(x.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const Laid laid = lay_out(x);
  const auto shape = shape_of(laid.layout);
  const auto options = x.options().dtype(at::kFloat);
  at::Tensor mean = at::empty({shape.channels}, options),
             rstd = at::empty({shape.channels}, options),
             var = at::empty({training ? shape.channels : 0}, options);
  float* mean_ptr = mean.mutable_data_ptr<float>();
  float* rstd_ptr = rstd.mutable_data_ptr<float>();
  const Floats weights(weight), biases(bias);
  at::Tensor y = empty_in(laid, output_format(laid, x, negative_slope));
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
  check_backward(op, grad_y, x, weight, bias, mean, rstd);
  const c10::cuda::CUDAGuard guard(x.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const Laid laid = lay_out(x);
  const auto shape = shape_of(laid.layout);
  const auto options = x.options().dtype(at::kFloat);
  at::Tensor grad_x = needs_grad_x ? empty_in(laid, grad_format(laid, x, grad_y, negative_slope))
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

#endif

}  // namespace

TORCH_LIBRARY_FRAGMENT(genimg, m) {
  m.def(
      "batch_norm_act_fwd(Tensor x, Tensor? weight, Tensor? bias, Tensor? running_mean,"
      " Tensor? running_var, bool training, float eps, float negative_slope)"
      " -> (Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "batch_norm_act_bwd(Tensor grad_y, Tensor x, Tensor? weight, Tensor? bias, Tensor mean,"
      " Tensor rstd, bool training, float negative_slope, bool needs_grad_x)"
      " -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(genimg, CPU, m) {
  m.impl("batch_norm_act_fwd", batch_norm_act_fwd_cpu);
  m.impl("batch_norm_act_bwd", batch_norm_act_bwd_cpu);
}

#ifdef GENIMG_WITH_CUDA
TORCH_LIBRARY_IMPL(genimg, CUDA, m) {
  m.impl("batch_norm_act_fwd", batch_norm_act_fwd_cuda);
  m.impl("batch_norm_act_bwd", batch_norm_act_bwd_cuda);
}
#endif

}  // namespace genimg
