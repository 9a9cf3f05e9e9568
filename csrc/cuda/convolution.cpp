// The convolutions on a GPU: memory from torch's allocator, the current stream, no synchronisation.
#ifdef GENIMG_WITH_CUDA
#include "convolution.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdlib>
#include <limits>
#include <string_view>

#include "../../kernels/cuda/conv/dgrad.h"
#include "../../kernels/cuda/conv/fprop.h"
#include "../../kernels/cuda/conv/wgrad.h"
#include "../checks.h"
#include "../convolution.h"
#include "../dispatch.h"
#include "../memory_format.h"

namespace genimg {

using at::MemoryFormat;

cuda::ConvPrecision cuda_precision() {
  const auto asked =
      at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::CONV);
  return asked == at::Float32Precision::TF32 ? cuda::ConvPrecision::kTf32
                                             : cuda::ConvPrecision::kFloat;
}

cuda::ConvTile cuda_tile() {
  const char* const asked = std::getenv("GENIMG_CUDA_SM90");
  return asked != nullptr && std::string_view(asked) == "1" ? cuda::ConvTile::kHalo
                                                            : cuda::ConvTile::kAuto;
}

at::Tensor empty_cuda_pixels(at::IntArrayRef sizes, const at::Tensor& like) {
  return at::empty(sizes, like.options(), MemoryFormat::ChannelsLast);
}

cuda::ConvGeometry cuda_geometry(const char* op, const cpu::ConvGeometry& g,
                                 at::IntArrayRef stride) {
  const auto small = [=](int64_t size) {
    TORCH_CHECK(size <= std::numeric_limits<int>::max(), op, ": a size of ", size,
                " is not supported");
    return static_cast<int>(size);
  };
  return {g.batch,           small(g.small_c), small(g.small_h), small(g.small_w),
          small(g.large_c),  small(g.large_h), small(g.large_w), small(g.kernel_h),
          small(g.kernel_w), small(stride[0]), small(stride[1]), small(g.pad_h),
          small(g.pad_w)};
}

namespace {

// fprop where `to_small`, else dgrad.
void contract(const char* op, bool to_small, const cuda::ConvGeometry& geometry,
              const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
              at::Tensor& y) {
  cuda::ConvEpilogue epilogue;
  if (bias.defined()) epilogue.bias = bias.const_data_ptr<float>();
  for_cuda_dtype(op, x.scalar_type(), [&]<typename T>(T) {
    C10_CUDA_CHECK(
        (to_small ? cuda::launch_conv_fprop<T>
                  : cuda::launch_conv_dgrad<T>)(geometry, static_cast<const T*>(x.const_data_ptr()),
                                                static_cast<const T*>(weight.const_data_ptr()),
                                                static_cast<T*>(y.mutable_data_ptr()),
                                                cuda::ConvPrologue{}, epilogue, cuda_tile(),
                                                cuda_precision(),
                                                c10::cuda::getCurrentCUDAStream()));
  });
}

void contract_weight(const char* op, const cuda::ConvGeometry& geometry, const at::Tensor& small,
                     const at::Tensor& large, at::Tensor& grad_weight, bool by_channel) {
  for_cuda_dtype(op, small.scalar_type(), [&]<typename T>(T) {
    at::Tensor scratch =
        at::empty({cuda::conv_wgrad_scratch<T>(geometry)}, small.options().dtype(at::kFloat));
    C10_CUDA_CHECK(cuda::launch_conv_wgrad(
        geometry, static_cast<const T*>(small.const_data_ptr()),
        static_cast<const T*>(large.const_data_ptr()), scratch.mutable_data_ptr<float>(),
        static_cast<T*>(grad_weight.mutable_data_ptr()), by_channel, cuda_precision(),
        cuda::ConvPrologue{}, cuda::ConvPrologue{}, c10::cuda::getCurrentCUDAStream()));
  });
}

}  // namespace

at::Tensor Convolution::forward_cuda(const at::Tensor& x, const at::Tensor& weight,
                                     const std::optional<at::Tensor>& bias) const {
  check(x, weight, bias ? &*bias : nullptr);
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor y = empty_cuda_pixels(
      {x.size(0), weight.size(transposed ? 1 : 0), out_size(x, weight, 2), out_size(x, weight, 3)},
      x);
  const at::Tensor floats = bias ? bias->to(at::kFloat).contiguous() : at::Tensor();
  contract(op, !transposed, cuda_geometry(op, geometry(x, y, weight), stride), cuda_pixels(x),
           cuda_pixels(weight), floats, y);
  const MemoryFormat format = output_format(x.suggest_memory_format(), weight);
  return with_strides_of(format, y.contiguous(format));
}

std::tuple<at::Tensor, at::Tensor> Convolution::backward_cuda(const at::Tensor& grad_y,
                                                              const at::Tensor& x,
                                                              const at::Tensor& weight,
                                                              bool needs_x,
                                                              bool needs_weight) const {
  check(x, weight, nullptr);
  check_same_device(op, "x", x, "grad_y", grad_y);
  check_same_dtype(op, "x", x, "grad_y", grad_y);
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor grads = cuda_pixels(grad_y);
  const cuda::ConvGeometry g = cuda_geometry(op, geometry(x, grads, weight), stride);
  const MemoryFormat format = output_format(x.suggest_memory_format(), weight);
  at::Tensor grad_x = at::empty({0}, x.options()), grad_weight = at::empty({0}, weight.options());
  if (needs_x) {
    grad_x = empty_cuda_pixels(x.sizes(), x);
    contract(op, transposed, g, grads, cuda_pixels(weight), at::Tensor(), grad_x);
    grad_x = with_strides_of(format, grad_x.contiguous(format));
  }
  if (needs_weight) {
    grad_weight = at::empty(weight.sizes(), weight.options(), format);
    const at::Tensor pixels = cuda_pixels(x);
    contract_weight(op, g, transposed ? pixels : grads, transposed ? grads : pixels, grad_weight,
                    format != MemoryFormat::ChannelsLast);
  }
  return {grad_x, grad_weight};
}

}  // namespace genimg
#endif
