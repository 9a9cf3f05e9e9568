#include "stack.h"

#include <vector>

#include "dgrad.h"
#include "fprop.h"
#include "stack_end.h"
#include "stack_norm.h"
#include "wgrad.h"

namespace genimg::cuda {
namespace {

// Hands out pieces of memory; without memory it only counts their bytes.
class Arena {
 public:
  explicit Arena(void* begin) : begin_(static_cast<char*>(begin)) {}

  template <typename T>
  T* take(int64_t count) {
    constexpr int64_t kAlignment = 256;
    char* const at = begin_ == nullptr ? nullptr : begin_ + bytes;
    bytes += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(at);
  }

  int64_t bytes = 0;

 private:
  char* begin_;
};

// The slope below zero of the activation behind the norm; 1 unless that is a LeakyReLU.
float slope_of(const ConvStackBlock& block) {
  return block.activation == Activation::kLeakyRelu ? block.negative_slope : 1.0f;
}

bool has_norm(const ConvStackBlock& block) { return block.norm != NormMode::kNone; }

int channels_of(const ConvStackBlock& block) {
  return block.transposed ? block.geometry.large_c : block.geometry.small_c;
}

int64_t pixels_of(const ConvStackBlock& block) {
  const ConvGeometry& g = block.geometry;
  const int64_t plane =
      block.transposed ? int64_t{g.large_h} * g.large_w : int64_t{g.small_h} * g.small_w;
  return g.batch * plane;
}

ConvStackEnd end_of(const ConvStackBlock& block, const ConvNorm& norm) {
  const bool curved =
      block.activation == Activation::kTanh || block.activation == Activation::kSigmoid;
  return {pixels_of(block), channels_of(block), norm, slope_of(block),
          curved ? block.activation : Activation::kNone};
}

// fprop where `to_small`, else dgrad.
template <typename T>
cudaError_t contract(bool to_small, const ConvStackBlock& block, const ConvStack& stack,
                     const T* from, T* to, const ConvPrologue& prologue,
                     const ConvEpilogue& epilogue, cudaStream_t stream) {
  return (to_small ? launch_conv_fprop<T>
                   : launch_conv_dgrad<T>)(block.geometry, from,
                                           static_cast<const T*>(block.weight), to, prologue,
                                           epilogue, stack.tile, stack.precision, stream);
}

// The floats and tickets of the largest of several workspaces, which are used one at a time.
struct SumsWorkspace {
  ConvSumsWorkspace most = {0, 0};

  void add(const ConvSumsWorkspace& room) {
    most.floats = most.floats < room.floats ? room.floats : most.floats;
    most.tickets = most.tickets < room.tickets ? room.tickets : most.tickets;
  }
};

ConvSumsWorkspace sums_of(bool to_small, const ConvStackBlock& block) {
  return (to_small ? conv_fprop_sums : conv_dgrad_sums)(block.geometry);
}

// A block's norm as the contractions read it; scale and shift are in the arena.
struct Norm {
  float *scale = nullptr, *shift = nullptr;

  void allocate(const ConvStackBlock& block, Arena& arena) {
    scale = arena.take<float>(channels_of(block));
    shift = arena.take<float>(channels_of(block));
  }
  ConvNorm of(const ConvStackBlock& block) const {
    if (!has_norm(block)) return {};
    return {block.mean, scale, shift};
  }
  ConvStackNorm parameters(const ConvStackBlock& block, bool running) const {
    return {channels_of(block),
            block.eps,
            running ? block.running_mean : nullptr,
            running ? block.running_var : nullptr,
            block.gamma,
            block.beta,
            block.mean,
            block.rstd,
            block.var,
            scale,
            shift};
  }
};

ConvPrologue reading(const ConvStackBlock& block, const ConvNorm& norm) {
  if (!has_norm(block)) return {};
  ConvPrologue prologue;
  prologue.kind = ConvPrologue::kAffineLeaky;
  prologue.mean = norm.mean;
  prologue.scale = norm.scale;
  prologue.shift = norm.shift;
  prologue.negative_slope = slope_of(block);
  return prologue;
}

template <typename T>
class Forward {
 public:
  Forward(const ConvStack& stack, void* room)
      : arena_(room), stack_(stack), norms_(stack.count), raws_(stack.count) {
    int64_t largest[2] = {0, 0};
    for (int b = 0; b < stack.count; ++b) {
      const ConvStackBlock& block = stack.blocks[b];
      if (has_norm(block)) norms_[b].allocate(block, arena_);
      if (block.norm == NormMode::kBatch) sums_.add(sums_of(!block.transposed, block));
      const int64_t size = pixels_of(block) * channels_of(block);
      if (passes(b) && largest[b % 2] < size) largest[b % 2] = size;
    }
    // Raw outputs that are not kept alternate between two buffers.
    T* const passing[2] = {arena_.take<T>(largest[0]), arena_.take<T>(largest[1])};
    for (int b = 0; b < stack.count; ++b) {
      raws_[b] = passes(b) ? passing[b % 2] : static_cast<T*>(stack.blocks[b].raw);
    }
    scratch_ = arena_.take<float>(sums_.most.floats);
  }

  ConvStackWorkspace room() const { return {arena_.bytes, sums_.most.tickets}; }

  cudaError_t run(const T* x, T* y, unsigned* tickets, cudaStream_t stream) {
    cudaError_t status = run_norms(stream);
    const T* image = x;
    ConvPrologue prologue;
    for (int b = 0; b < stack_.count && status == cudaSuccess; ++b) {
      const ConvStackBlock& block = stack_.blocks[b];
      const ConvNorm norm = norms_[b].of(block);
      T* const raw = is_output(b) ? y : raws_[b];
      status = contract(!block.transposed, block, stack_, image, raw, prologue, writing(b, tickets),
                        stream);
      if (b + 1 == stack_.count && has_norm(block) && status == cudaSuccess) {
        status = launch_conv_stack_end_fwd<T>(end_of(block, norm), raw, y, stream);
      }
      image = raw;
      prologue = reading(block, norm);
    }
    return status;
  }

 private:
  // Whether the convolution of block b writes the stack's output.
  bool is_output(int b) const { return b + 1 == stack_.count && !has_norm(stack_.blocks[b]); }
  bool passes(int b) const { return stack_.blocks[b].raw == nullptr && !is_output(b); }

  cudaError_t run_norms(cudaStream_t stream) const {
    std::vector<ConvStackNorm> running;
    for (int b = 0; b < stack_.count; ++b) {
      const ConvStackBlock& block = stack_.blocks[b];
      if (block.norm == NormMode::kRunning) running.push_back(norms_[b].parameters(block, true));
    }
    return launch_conv_stack_norm(running.data(), static_cast<int>(running.size()), stream);
  }

  ConvEpilogue writing(int b, unsigned* tickets) const {
    const ConvStackBlock& block = stack_.blocks[b];
    ConvEpilogue epilogue;
    epilogue.bias = block.bias;
    if (!has_norm(block)) {
      epilogue.activation = block.activation;
      epilogue.negative_slope = block.negative_slope;
    }
    if (block.norm == NormMode::kBatch) {
      epilogue.sums.scratch = scratch_;
      epilogue.sums.tickets = tickets;
      epilogue.sums.statistics = {block.eps,  block.gamma, block.beta,      block.mean,
                                  block.rstd, block.var,   norms_[b].scale, norms_[b].shift};
    }
    return epilogue;
  }

  Arena arena_;
  const ConvStack& stack_;
  std::vector<Norm> norms_;
  std::vector<T*> raws_;
  SumsWorkspace sums_;
  float* scratch_;
};

// The coefficients that take a gradient through the statistics of a batch; in the arena.
struct StatsGradCoeffs {
  float *slope = nullptr, *shift = nullptr;
};

// dz, the gradient behind a block's norm, and the prologue that takes it through the norm.
template <typename T>
struct ReadGrad {
  const T* dz;
  ConvPrologue prologue;
};

template <typename T>
class Backward {
 public:
  Backward(const ConvStack& stack, bool needs_x, void* room)
      : arena_(room),
        stack_(stack),
        lowest_(conv_stack_lowest(stack, needs_x)),
        norms_(stack.count),
        through_(stack.count) {
    int64_t largest[2] = {0, 0}, weights = 0;
    for (int b = lowest_ == 0 ? 0 : lowest_ - 1; b < stack.count; ++b) {
      const ConvStackBlock& block = stack.blocks[b];
      if (has_norm(block)) norms_[b].allocate(block, arena_);
      if (b < lowest_) continue;
      if (block.norm == NormMode::kBatch) {
        through_[b].slope = arena_.take<float>(channels_of(block));
        through_[b].shift = arena_.take<float>(channels_of(block));
      }
      if (b + 1 == stack.count) {
        sums_.add(conv_stack_end_sums(end_of(block, {})));
      } else {
        sums_.add(sums_of(stack.blocks[b + 1].transposed, stack.blocks[b + 1]));
      }
      const int64_t size = pixels_of(block) * channels_of(block);
      if (largest[b % 2] < size) largest[b % 2] = size;
      if (block.grad_weight != nullptr) {
        const int64_t scratch = conv_wgrad_scratch<T>(block.geometry);
        weights = weights < scratch ? scratch : weights;
      }
    }
    for (int i = 0; i < 2; ++i) passing_[i] = arena_.take<T>(largest[i]);
    scratch_ = arena_.take<float>(sums_.most.floats);
    weight_scratch_ = arena_.take<float>(weights);
  }

  ConvStackWorkspace room() const { return {arena_.bytes, sums_.most.tickets}; }

  cudaError_t run(const T* grad_y, const T* x, const T* y, T* grad_x, unsigned* tickets,
                  cudaStream_t stream) {
    tickets_ = tickets;
    stream_ = stream;
    if (lowest_ == stack_.count) return cudaSuccess;
    cudaError_t status = run_norms();
    if (status == cudaSuccess) status = begin(grad_y, y);
    for (int b = stack_.count - 1; b >= lowest_ && status == cudaSuccess; --b) {
      const ConvStackBlock& block = stack_.blocks[b];
      if (block.grad_weight != nullptr) status = run_weight(b, b == 0 ? x : raw(b - 1));
      if (status != cudaSuccess) break;
      if (b > lowest_) {
        status = descend(b);
      } else if (grad_x != nullptr) {
        status =
            contract(block.transposed, block, stack_, grad_.dz, grad_x, grad_.prologue, {}, stream);
      }
    }
    return status;
  }

 private:
  const T* raw(int b) const { return static_cast<const T*>(stack_.blocks[b].raw); }
  ConvNorm norm(int b) const { return norms_[b].of(stack_.blocks[b]); }

  cudaError_t run_norms() const {
    std::vector<ConvStackNorm> all;
    for (int b = lowest_ == 0 ? 0 : lowest_ - 1; b < stack_.count; ++b) {
      const ConvStackBlock& block = stack_.blocks[b];
      if (has_norm(block)) all.push_back(norms_[b].parameters(block, false));
    }
    return launch_conv_stack_norm(all.data(), static_cast<int>(all.size()), stream_);
  }

  // Takes the gradient through the last activation.
  cudaError_t begin(const T* grad_y, const T* y) {
    const int b = stack_.count - 1;
    const ConvStackBlock& block = stack_.blocks[b];
    if (block.activation == Activation::kNone && !has_norm(block) && block.grad_bias == nullptr) {
      grad_ = {grad_y, {}};
      return cudaSuccess;
    }
    T* const dz = passing_[b % 2];
    arrive(b, dz);
    return launch_conv_stack_end_bwd<T>(end_of(block, norm(b)), grad_y, y, raw(b), dz, grads(b),
                                        scratch_, tickets_, stream_);
  }

  // From block b's convolution to that of the block before it.
  cudaError_t descend(int b) {
    const ConvStackBlock &block = stack_.blocks[b], &before = stack_.blocks[b - 1];
    ConvEpilogue epilogue;
    epilogue.gate_y = before.raw;
    epilogue.gate = norm(b - 1);
    epilogue.gate_slope = slope_of(before);
    if (has_norm(before) || before.grad_bias != nullptr) {
      epilogue.sums.scratch = scratch_;
      epilogue.sums.tickets = tickets_;
      epilogue.sums.grads = grads(b - 1);
    }
    T* const dz = passing_[(b - 1) % 2];
    const ReadGrad<T> from = grad_;
    arrive(b - 1, dz);
    return contract(block.transposed, block, stack_, from.dz, dz, from.prologue, epilogue, stream_);
  }

  ConvNormGrads grads(int b) const {
    const ConvStackBlock& block = stack_.blocks[b];
    return {block.norm,       block.rstd,      norms_[b].scale,   block.grad_bias,
            block.grad_gamma, block.grad_beta, through_[b].slope, through_[b].shift};
  }

  // Makes dz, the gradient behind block b's norm, the current one.
  void arrive(int b, const T* dz) {
    const ConvStackBlock& block = stack_.blocks[b];
    ConvPrologue prologue;
    if (has_norm(block)) {
      prologue.kind = ConvPrologue::kScaled;
      prologue.scale = norms_[b].scale;
    }
    if (block.norm == NormMode::kBatch) {
      prologue.kind = ConvPrologue::kTwoTensor;
      prologue.y = block.raw;
      prologue.mean = block.mean;
      prologue.slope = through_[b].slope;
      prologue.shift = through_[b].shift;
    }
    grad_ = {dz, prologue};
  }

  cudaError_t run_weight(int b, const T* image) {
    const ConvStackBlock& block = stack_.blocks[b];
    const ConvPrologue read = b == 0 ? ConvPrologue{} : reading(stack_.blocks[b - 1], norm(b - 1));
    T* const to = static_cast<T*>(block.grad_weight);
    if (block.transposed) {
      return launch_conv_wgrad<T>(block.geometry, image, grad_.dz, weight_scratch_, to,
                                  block.by_channel, stack_.precision, read, grad_.prologue,
                                  stream_);
    }
    return launch_conv_wgrad<T>(block.geometry, grad_.dz, image, weight_scratch_, to,
                                block.by_channel, stack_.precision, grad_.prologue, read, stream_);
  }

  Arena arena_;
  const ConvStack& stack_;
  int lowest_;
  std::vector<Norm> norms_;
  std::vector<StatsGradCoeffs> through_;
  SumsWorkspace sums_;
  T* passing_[2];
  float *scratch_, *weight_scratch_;
  ReadGrad<T> grad_;
  unsigned* tickets_;
  cudaStream_t stream_;
};

}  // namespace

int conv_stack_lowest(const ConvStack& stack, bool needs_x) {
  int b = 0;
  while (!needs_x && b < stack.count && stack.blocks[b].grad_weight == nullptr &&
         stack.blocks[b].grad_bias == nullptr && stack.blocks[b].grad_gamma == nullptr &&
         stack.blocks[b].grad_beta == nullptr) {
    ++b;
  }
  return b;
}

template <typename T>
ConvStackWorkspace conv_stack_fwd_workspace(const ConvStack& stack) {
  return Forward<T>(stack, nullptr).room();
}

template <typename T>
cudaError_t launch_conv_stack_fwd(const ConvStack& stack, const T* x, T* y, void* room,
                                  unsigned* tickets, cudaStream_t stream) {
  return Forward<T>(stack, room).run(x, y, tickets, stream);
}

template <typename T>
ConvStackWorkspace conv_stack_bwd_workspace(const ConvStack& stack, bool needs_x) {
  return Backward<T>(stack, needs_x, nullptr).room();
}

template <typename T>
cudaError_t launch_conv_stack_bwd(const ConvStack& stack, const T* grad_y, const T* x, const T* y,
                                  T* grad_x, void* room, unsigned* tickets, cudaStream_t stream) {
  return Backward<T>(stack, grad_x != nullptr, room).run(grad_y, x, y, grad_x, tickets, stream);
}

#define GENIMG_INSTANTIATE(T)                                                                     \
  template ConvStackWorkspace conv_stack_fwd_workspace<T>(const ConvStack&);                      \
  template cudaError_t launch_conv_stack_fwd<T>(const ConvStack&, const T*, T*, void*, unsigned*, \
                                                cudaStream_t);                                    \
  template ConvStackWorkspace conv_stack_bwd_workspace<T>(const ConvStack&, bool);                \
  template cudaError_t launch_conv_stack_bwd<T>(const ConvStack&, const T*, const T*, const T*,   \
                                                T*, void*, unsigned*, cudaStream_t);
GENIMG_INSTANTIATE(float)
GENIMG_INSTANTIATE(__half)
GENIMG_INSTANTIATE(__nv_bfloat16)
#undef GENIMG_INSTANTIATE

}  // namespace genimg::cuda
