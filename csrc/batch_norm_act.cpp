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

#include "batch_norm_act.h"
#include "dispatch.h"

namespace genimg {
namespace {

using cpu::BatchNormActKernels;
using norm::Floats;
using norm::Optional;

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

template <typename T>
void batch_moments(const ChannelView& laid, const Pieces& pieces, float* mean, float* var_biased,
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
  // First the mean, then the spread of the pieces about it and within them: nothing cancels, and an
  // infinite mean stays infinite.
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
void forward(const ChannelView& laid, const Pieces& pieces, const PerChannel& affine,
             const float* mean, float negative_slope, at::Tensor& y_tensor) {
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

// Returns y, and mean, rstd and unbiased variance of the batch; in eval mode, mean and rstd of the
// running statistics, and an empty variance.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_act_fwd_cpu(
    const at::Tensor& x, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& running_mean,
    const std::optional<at::Tensor>& running_var, bool training, double eps,
    double negative_slope) {
  const char* op = "batch_norm_act_fwd";
  norm::check_forward(op, x, weight, bias, running_mean, running_var, training);
  const ChannelView laid = channel_view(x);
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
  at::Tensor y = empty_in(laid, norm::output_format(laid, x, negative_slope));
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
void backward_sums(const ChannelView& laid, const Pieces& pieces, const T* grad_y,
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
void backward_apply(const ChannelView& laid, const Pieces& pieces, const T* grad_y,
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
void backward(const ChannelView& laid, const at::Tensor& grad_y_tensor, const PerChannel& affine,
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
  norm::check_backward(op, grad_y, x, weight, bias, mean, rstd);
  const ChannelView laid = channel_view(x);
  const int64_t channels = x.size(1);
  const Floats means(mean), rstds(rstd);
  const PerChannel affine = forward_affine(channels, Floats(weight), Floats(bias), rstds.values);
  const auto options = x.options().dtype(at::kFloat);
  at::Tensor grad_weight = at::empty({channels}, options),
             grad_bias = at::empty({channels}, options);
  at::Tensor grad_x = needs_grad_x
                          ? empty_in(laid, norm::grad_format(laid, x, grad_y, negative_slope))
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

}  // namespace genimg
