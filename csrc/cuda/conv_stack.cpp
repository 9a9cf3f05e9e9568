// genimg::conv_stack_fwd and genimg::conv_stack_bwd on a GPU: memory from torch's allocator, the
// current stream, no synchronisation. kernels/cuda/conv/stack.cu has the sequence of launches.
#ifdef GENIMG_WITH_CUDA
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <vector>

#include "../../kernels/cuda/conv/stack.h"
#include "../checks.h"
#include "../conv_block.h"
#include "../dispatch.h"
#include "../memory_format.h"
#include "convolution.h"

namespace genimg {
namespace {

using Parameters = c10::List<std::optional<at::Tensor>>;

template <typename A, typename B>
constexpr bool is_same(A a, B b) {
  return static_cast<int>(a) == static_cast<int>(b);
}
static_assert(is_same(NormMode::none, cuda::NormMode::kNone) &&
                  is_same(NormMode::batch, cuda::NormMode::kBatch) &&
                  is_same(NormMode::running, cuda::NormMode::kRunning),
              "the kernels have the enumeration of genimg/conv_blocks.py");
static_assert(is_same(Activation::none, cuda::Activation::kNone) &&
                  is_same(Activation::leaky_relu, cuda::Activation::kLeakyRelu) &&
                  is_same(Activation::tanh, cuda::Activation::kTanh) &&
                  is_same(Activation::sigmoid, cuda::Activation::kSigmoid),
              "Stack casts one to the other");

const at::Tensor* given(const std::optional<at::Tensor>& tensor) {
  return tensor ? &*tensor : nullptr;
}

// The blocks as the kernels take them, and the tensors that their pointers point into.
class Stack {
 public:
  Stack(const char* op, const at::Tensor& x, const Parameters& parameters, at::IntArrayRef options,
        at::ArrayRef<double> numbers, bool training)
      : op_(op),
        parsed(read_blocks(op, parameters, options, numbers)),
        blocks(parsed.size()),
        format(x.suggest_memory_format()) {
    std::vector<int64_t> shape = x.sizes().vec();
    for (size_t b = 0; b < parsed.size(); ++b) {
      ConvBlock& from = parsed[b];
      const Convolution convolution = from.convolution();
      const at::Tensor image = of_shape(x, shape);
      convolution.check(image, from.weight, given(from.bias));
      shape = {shape[0], from.weight.size(from.transposed() ? 1 : 0),
               convolution.out_size(image, from.weight, 2),
               convolution.out_size(image, from.weight, 3)};
      const at::Tensor output = of_shape(x, shape);
      cuda::ConvStackBlock& block = blocks[b];
      block = {};
      block.geometry =
          cuda_geometry(op, convolution.geometry(image, output, from.weight), convolution.stride);
      block.transposed = from.transposed();
      if (from.has_norm()) {
        block.norm =
            from.takes_statistics(training) ? cuda::NormMode::kBatch : cuda::NormMode::kRunning;
      }
      block.activation = static_cast<cuda::Activation>(from.activation);
      block.eps = static_cast<float>(from.eps);
      block.negative_slope = static_cast<float>(from.negative_slope);
      block.weight = hold(cuda_pixels(from.weight)).const_data_ptr();
      block.bias = floats("bias", from.bias, x);
      block.gamma = floats("gamma", from.gamma, x);
      block.beta = floats("beta", from.beta, x);
      block.running_mean = floats("running mean", from.running_mean, x);
      block.running_var = floats("running variance", from.running_var, x);
      shapes.push_back(shape);
      from.set_formats(format);
      block.by_channel = from.format != at::MemoryFormat::ChannelsLast;
      format = from.passed_on(shape);
    }
  }

  cuda::ConvStack view() const {
    return {blocks.data(), static_cast<int>(blocks.size()), cuda_precision(), cuda_tile()};
  }

  const at::Tensor& hold(at::Tensor tensor) {
    held_.push_back(std::move(tensor));
    return held_.back();
  }

  // Allocates one float per channel of block b.
  float* channels(size_t b, at::Tensor& tensor, const at::Tensor& like) const {
    tensor = at::empty({shapes[b][1]}, like.options().dtype(at::kFloat));
    return tensor.mutable_data_ptr<float>();
  }

 private:
  // Returns an image without memory of its own, for checks and sizes.
  static at::Tensor of_shape(const at::Tensor& like, at::IntArrayRef shape) {
    TORCH_CHECK(like.numel() > 0, "expected no empty tensor, but got ", like.sizes());
    return like.as_strided(shape, std::vector<int64_t>(shape.size(), 0));
  }

  const float* floats(const char* name, const std::optional<at::Tensor>& parameter,
                      const at::Tensor& x) {
    if (!parameter) return nullptr;
    check_same_device(op_, "x", x, name, *parameter);
    return hold(parameter->to(at::kFloat).contiguous()).const_data_ptr<float>();
  }

  const char* op_;
  std::vector<at::Tensor> held_;

 public:
  std::vector<ConvBlock> parsed;
  std::vector<cuda::ConvStackBlock> blocks;
  std::vector<std::vector<int64_t>> shapes;  // of every block's output
  at::MemoryFormat format;                   // of the stack's output
};

// Memory that the launches use while they run.
struct Workspace {
  Workspace(const cuda::ConvStackWorkspace& room, const at::Tensor& like)
      : bytes(at::empty({room.bytes}, like.options().dtype(at::kByte))),
        tickets(at::zeros({room.tickets}, like.options().dtype(at::kInt))) {}

  void* bytes_ptr() const { return bytes.mutable_data_ptr(); }
  unsigned* tickets_ptr() const { return static_cast<unsigned*>(tickets.mutable_data_ptr()); }

  const at::Tensor bytes, tickets;
};

std::tuple<at::Tensor, Tensors, Tensors, Tensors, Tensors> conv_stack_fwd_cuda(
    const at::Tensor& x, const Parameters& parameters, at::IntArrayRef options,
    at::ArrayRef<double> numbers, bool training, bool keep) {
  const char* op = "conv_stack_fwd";
  const c10::cuda::CUDAGuard guard(x.device());
  Stack stack(op, x, parameters, options, numbers, training);
  const size_t count = stack.blocks.size();
  Kept kept(count);
  for (size_t b = 0; b < count; ++b) {
    cuda::ConvStackBlock& block = stack.blocks[b];
    const bool norm = block.norm != cuda::NormMode::kNone;
    TORCH_CHECK(block.norm != cuda::NormMode::kRunning || (block.running_mean && block.running_var),
                op, ": block ", b, ": expected running statistics outside training");
    if (keep && (norm || b + 1 < count)) {
      kept.raws[b] = empty_cuda_pixels(stack.shapes[b], x);
      block.raw = kept.raws[b].mutable_data_ptr();
    }
    if (norm) {
      block.mean = stack.channels(b, kept.means[b], x);
      block.rstd = stack.channels(b, kept.rstds[b], x);
      block.var = stack.channels(b, kept.variances[b], x);
    }
  }
  at::Tensor y = empty_cuda_pixels(stack.shapes.back(), x);
  const at::Tensor pixels = cuda_pixels(x);
  for_cuda_dtype(op, x.scalar_type(), [&]<typename T>(T) {
    const Workspace room(cuda::conv_stack_fwd_workspace<T>(stack.view()), x);
    C10_CUDA_CHECK(
        cuda::launch_conv_stack_fwd<T>(stack.view(), static_cast<const T*>(pixels.const_data_ptr()),
                                       static_cast<T*>(y.mutable_data_ptr()), room.bytes_ptr(),
                                       room.tickets_ptr(), c10::cuda::getCurrentCUDAStream()));
  });
  return {with_strides_of(stack.format, y.contiguous(stack.format)),
          returned(kept.raws, x.options()), returned(kept.means, x.options()),
          returned(kept.rstds, x.options()), returned(kept.variances, x.options())};
}

std::tuple<at::Tensor, Tensors, Tensors, Tensors, Tensors> conv_stack_bwd_cuda(
    const at::Tensor& grad_y, const at::Tensor& x, const std::optional<at::Tensor>& y,
    const Parameters& parameters, const Tensors& raws, const Tensors& means, const Tensors& rstds,
    at::IntArrayRef options, at::ArrayRef<double> numbers, bool training, bool needs_x,
    at::IntArrayRef needs) {
  const char* op = "conv_stack_bwd";
  const c10::cuda::CUDAGuard guard(x.device());
  Stack stack(op, x, parameters, options, numbers, training);
  const size_t count = stack.blocks.size();
  check_lists(op, count, raws, means, rstds, needs);
  const auto check_image = [&](const char* name, const at::Tensor& image, size_t b) {
    check_same_device(op, "x", x, name, image);
    check_same_dtype(op, "x", x, name, image);
    TORCH_CHECK(image.sizes() == stack.shapes[b], op, ": expected ", name, " of shape ",
                at::IntArrayRef(stack.shapes[b]), ", but got ", image.sizes());
  };
  const auto statistic = [&](const at::Tensor& tensor, size_t b) {
    check_same_device(op, "x", x, "a statistic", tensor);
    TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.numel() == stack.shapes[b][1], op,
                ": expected a statistic of ", stack.shapes[b][1], " floats, but got ",
                tensor.sizes());
    // A backward only reads it; the struct is shared with the forward, which writes it.
    return const_cast<float*>(stack.hold(tensor.contiguous()).const_data_ptr<float>());
  };
  check_image("grad_y", grad_y, count - 1);
  const cuda::ConvStackBlock& last = stack.blocks.back();
  TORCH_CHECK(last.norm != cuda::NormMode::kNone || last.activation != cuda::Activation::kLeakyRelu,
              op,
              ": the last block ends in a LeakyReLU without a norm, whose gradient the caller "
              "computes by leaky_signs_bwd");
  TORCH_CHECK(y || !stack.parsed.back().is_curved(), op,
              ": expected the output, from which the last activation's gradient is computed");
  if (y) check_image("y", *y, count - 1);

  size_t lowest = 0;
  while (!needs_x && lowest < count && needs[lowest] == 0) ++lowest;
  ParameterGrads grads(count);
  for (size_t b = 0; b < count; ++b) {
    cuda::ConvStackBlock& block = stack.blocks[b];
    const bool norm = block.norm != cuda::NormMode::kNone;
    if (norm || b + 1 < count) {
      check_image("a raw output", raws[b], b);
      block.raw = const_cast<void*>(stack.hold(cuda_pixels(raws[b])).const_data_ptr());
    }
    if (norm) {
      block.mean = statistic(means[b], b);
      block.rstd = statistic(rstds[b], b);
    }
    if (needs[b] & kNeedsWeight) {
      const at::Tensor& weight = stack.parsed[b].weight;
      grads.weights[b] = at::empty(weight.sizes(), weight.options(), stack.parsed[b].format);
      block.grad_weight = grads.weights[b].mutable_data_ptr();
    }
    if (b < lowest) continue;
    if (block.bias != nullptr) block.grad_bias = stack.channels(b, grads.biases[b], x);
    if (norm) {
      block.grad_gamma = stack.channels(b, grads.gammas[b], x);
      block.grad_beta = stack.channels(b, grads.betas[b], x);
    }
  }
  at::Tensor grad_x;
  if (needs_x) grad_x = empty_cuda_pixels(x.sizes(), x);
  const at::Tensor grad_pixels = cuda_pixels(grad_y), pixels = cuda_pixels(x);
  const at::Tensor outputs = y ? cuda_pixels(*y) : at::Tensor();
  for_cuda_dtype(op, x.scalar_type(), [&]<typename T>(T) {
    const Workspace room(cuda::conv_stack_bwd_workspace<T>(stack.view(), needs_x), x);
    C10_CUDA_CHECK(cuda::launch_conv_stack_bwd<T>(
        stack.view(), static_cast<const T*>(grad_pixels.const_data_ptr()),
        static_cast<const T*>(pixels.const_data_ptr()),
        y ? static_cast<const T*>(outputs.const_data_ptr()) : nullptr,
        needs_x ? static_cast<T*>(grad_x.mutable_data_ptr()) : nullptr, room.bytes_ptr(),
        room.tickets_ptr(), c10::cuda::getCurrentCUDAStream()));
  });
  const at::MemoryFormat format = stack.parsed[0].format;
  grad_x =
      needs_x ? with_strides_of(format, grad_x.contiguous(format)) : at::empty({0}, x.options());
  return {grad_x, returned(grads.weights, x.options()), returned(grads.biases, x.options()),
          returned(grads.gammas, x.options()), returned(grads.betas, x.options())};
}

}  // namespace

TORCH_LIBRARY_IMPL(genimg, CUDA, m) {
  m.impl("conv_stack_fwd", conv_stack_fwd_cuda);
  m.impl("conv_stack_bwd", conv_stack_bwd_cuda);
}

}  // namespace genimg
#endif
