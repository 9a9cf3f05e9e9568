#include "stack_norm.h"

#include "../vector.h"

namespace genimg::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kNorms = 16;  // per launch: they are passed by value

struct Norms {
  ConvStackNorm of[kNorms];
};

__global__ void __launch_bounds__(kThreads) conv_stack_norm_kernel(Norms norms) {
  const ConvStackNorm& norm = norms.of[blockIdx.y];
  const int c = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (c >= norm.channels) return;
  float rstd;
  if (norm.running_mean != nullptr) {
    norm.mean[c] = norm.running_mean[c];
    const float var = norm.running_var[c];
    rstd = static_cast<float>(1 / sqrt(static_cast<double>(var) + norm.eps));
    norm.rstd[c] = rstd;
    norm.var[c] = var;
  } else {
    rstd = norm.rstd[c];
  }
  norm.scale[c] = norm.gamma == nullptr ? rstd : norm.gamma[c] * rstd;
  norm.shift[c] = norm.beta == nullptr ? 0 : norm.beta[c];
}

}  // namespace

cudaError_t launch_conv_stack_norm(const ConvStackNorm* norms, int count, cudaStream_t stream) {
  for (int first = 0; first < count; first += kNorms) {
    const int here = count - first < kNorms ? count - first : kNorms;
    Norms some = {};
    int channels = 0;
    for (int i = 0; i < here; ++i) {
      some.of[i] = norms[first + i];
      channels = channels < some.of[i].channels ? some.of[i].channels : channels;
    }
    const dim3 grid(static_cast<unsigned>(ceil_div(channels, kThreads)),
                    static_cast<unsigned>(here));
    const cudaError_t status =
        simt::launch(conv_stack_norm_kernel, grid, kThreads, 0, stream, some);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace genimg::cuda
