// genimg::reparam_kl_fwd and genimg::reparam_kl_bwd. What they compute: genimg/ops/reparam_kl.py.
#include "../kernels/cpu/reparam_kl.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "checks.h"
#include "dispatch.h"
#include "memory_format.h"

#ifdef GENIMG_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../kernels/cuda/reparam_kl.h"
#endif

namespace genimg {
namespace {

// Below this many elements a second thread costs more than it saves.
constexpr int64_t kGrain = 8192;

struct Seed {
  uint64_t key, offset;
};

Seed read_seed(const char* op, const at::Tensor& seed) {
  TORCH_CHECK(seed.scalar_type() == at::kLong && seed.dim() == 1 && seed.size(0) == 2 &&
                  seed.device().is_cpu(),
              op, ": expected seed to be int64 [2] on the CPU, but got ", seed.scalar_type(), " ",
              seed.sizes(), " on ", seed.device());
  const at::Tensor dense = seed.contiguous();
  const int64_t* words = dense.const_data_ptr<int64_t>();
  return {static_cast<uint64_t>(words[0]), static_cast<uint64_t>(words[1])};
}

template <typename Kernel>
void over_rows(const at::Tensor& mu, Kernel kernel) {
  const int64_t rows = mu.size(0);
  const int64_t row_size = rows > 0 ? mu.numel() / rows : 0;
  const int64_t grain = row_size > 0 ? std::max<int64_t>(1, kGrain / row_size) : rows + 1;
  at::parallel_for(0, rows, grain,
                   [&](int64_t begin, int64_t end) { kernel(begin, end, row_size); });
}

// The kernels work in row-major order; a result goes back into its input's memory format.
at::Tensor in_format_of(const at::Tensor& like, const at::Tensor& dense) {
  at::Tensor result = empty_elementwise(like);
  return result.strides() == dense.strides() ? dense : result.copy_(dense);
}

void check_inputs(const char* op, const at::Tensor& mu, const at::Tensor& logvar) {
  check_like(op, "mu", mu, "logvar", logvar);
  TORCH_CHECK(mu.dim() >= 2, op, ": expected mu of shape [N, ...], but got ", mu.sizes());
}

void check_grad_kl(const at::Tensor& mu, const at::Tensor& grad_kl) {
  TORCH_CHECK(grad_kl.scalar_type() == at::kFloat && grad_kl.dim() == 1 &&
                  grad_kl.size(0) == mu.size(0) && grad_kl.device() == mu.device(),
              "reparam_kl_bwd: expected grad_kl to be float32 [", mu.size(0), "] on ", mu.device(),
              ", but got ", grad_kl.scalar_type(), " ", grad_kl.sizes(), " on ", grad_kl.device());
}

std::tuple<at::Tensor, at::Tensor> reparam_kl_fwd_cpu(const at::Tensor& mu,
                                                      const at::Tensor& logvar,
                                                      const at::Tensor& seed_tensor) {
  check_inputs("reparam_kl_fwd", mu, logvar);
  const Seed seed = read_seed("reparam_kl_fwd", seed_tensor);
  const at::Tensor dense_mu = mu.contiguous(), dense_logvar = logvar.contiguous();
  at::Tensor z = at::empty(mu.sizes(), mu.options());
  at::Tensor kl = at::empty({mu.size(0)}, mu.options().dtype(at::kFloat));
  float* kl_ptr = kl.mutable_data_ptr<float>();
  const auto run = [&]<typename T>(T, auto kernel) {
    over_rows(mu, [&](int64_t begin, int64_t end, int64_t row_size) {
      kernel(static_cast<const T*>(dense_mu.const_data_ptr()),
             static_cast<const T*>(dense_logvar.const_data_ptr()), seed.key, seed.offset,
             static_cast<T*>(z.mutable_data_ptr()), kl_ptr, begin, end, row_size);
    });
  };
  switch (mu.scalar_type()) {
    case at::kFloat:
      run(float{}, GENIMG_CPU_KERNEL(reparam_kl_fwd_f32));
      break;
    case at::kBFloat16:
      run(uint16_t{}, GENIMG_CPU_KERNEL(reparam_kl_fwd_bf16));
      break;
    default:
      refuse_dtype("reparam_kl_fwd", mu.scalar_type(), "float32 and bfloat16");
  }
  return {in_format_of(mu, z), kl};
}

std::tuple<at::Tensor, at::Tensor> reparam_kl_bwd_cpu(const at::Tensor& grad_z,
                                                      const at::Tensor& grad_kl,
                                                      const at::Tensor& mu,
                                                      const at::Tensor& logvar,
                                                      const at::Tensor& seed_tensor) {
  check_inputs("reparam_kl_bwd", mu, logvar);
  check_like("reparam_kl_bwd", "mu", mu, "grad_z", grad_z);
  check_grad_kl(mu, grad_kl);
  const Seed seed = read_seed("reparam_kl_bwd", seed_tensor);
  const at::Tensor dense_mu = mu.contiguous(), dense_logvar = logvar.contiguous(),
                   dense_grad_z = grad_z.contiguous(), dense_grad_kl = grad_kl.contiguous();
  at::Tensor grad_mu = at::empty(mu.sizes(), mu.options());
  at::Tensor grad_logvar = at::empty(mu.sizes(), mu.options());
  const auto run = [&]<typename T>(T, auto kernel) {
    over_rows(mu, [&](int64_t begin, int64_t end, int64_t row_size) {
      kernel(static_cast<const T*>(dense_grad_z.const_data_ptr()),
             dense_grad_kl.const_data_ptr<float>(),
             static_cast<const T*>(dense_mu.const_data_ptr()),
             static_cast<const T*>(dense_logvar.const_data_ptr()), seed.key, seed.offset,
             static_cast<T*>(grad_mu.mutable_data_ptr()),
             static_cast<T*>(grad_logvar.mutable_data_ptr()), begin, end, row_size);
    });
  };
  switch (mu.scalar_type()) {
    case at::kFloat:
      run(float{}, GENIMG_CPU_KERNEL(reparam_kl_bwd_f32));
      break;
    case at::kBFloat16:
      run(uint16_t{}, GENIMG_CPU_KERNEL(reparam_kl_bwd_bf16));
      break;
    default:
      refuse_dtype("reparam_kl_bwd", mu.scalar_type(), "float32 and bfloat16");
  }
  return {in_format_of(mu, grad_mu), in_format_of(logvar, grad_logvar)};
}

#ifdef GENIMG_WITH_CUDA

// The kernels read the seed from the device, without synchronisation, so that a CUDA graph that
// draws a seed draws new noise at every replay.
at::Tensor device_seed(const char* op, const at::Tensor& seed, const at::Tensor& mu) {
  TORCH_CHECK(seed.scalar_type() == at::kLong && seed.dim() == 1 && seed.size(0) == 2 &&
                  seed.device() == mu.device(),
              op, ": expected seed to be int64 [2] on ", mu.device(), ", but got ",
              seed.scalar_type(), " ", seed.sizes(), " on ", seed.device());
  return seed.contiguous();
}

int64_t row_size_of(const at::Tensor& mu) { return mu.size(0) > 0 ? mu.numel() / mu.size(0) : 0; }

std::tuple<at::Tensor, at::Tensor> reparam_kl_fwd_cuda(const at::Tensor& mu,
                                                       const at::Tensor& logvar,
                                                       const at::Tensor& seed_tensor) {
  const char* op = "reparam_kl_fwd";
  check_inputs(op, mu, logvar);
  const c10::cuda::CUDAGuard guard(mu.device());
  const at::Tensor seed = device_seed(op, seed_tensor, mu);
  const at::Tensor dense_mu = mu.contiguous(), dense_logvar = logvar.contiguous();
  at::Tensor z = at::empty(mu.sizes(), mu.options());
  at::Tensor kl = at::empty({mu.size(0)}, mu.options().dtype(at::kFloat));
  for_cuda_dtype(op, mu.scalar_type(), [&]<typename T>(T) {
    C10_CUDA_CHECK(cuda::launch_reparam_kl_fwd(
        static_cast<const T*>(dense_mu.const_data_ptr()),
        static_cast<const T*>(dense_logvar.const_data_ptr()), seed.const_data_ptr<int64_t>(),
        static_cast<T*>(z.mutable_data_ptr()), kl.mutable_data_ptr<float>(), mu.size(0),
        row_size_of(mu), c10::cuda::getCurrentCUDAStream()));
  });
  return {in_format_of(mu, z), kl};
}

std::tuple<at::Tensor, at::Tensor> reparam_kl_bwd_cuda(const at::Tensor& grad_z,
                                                       const at::Tensor& grad_kl,
                                                       const at::Tensor& mu,
                                                       const at::Tensor& logvar,
                                                       const at::Tensor& seed_tensor) {
  const char* op = "reparam_kl_bwd";
  check_inputs(op, mu, logvar);
  check_like(op, "mu", mu, "grad_z", grad_z);
  check_grad_kl(mu, grad_kl);
  const c10::cuda::CUDAGuard guard(mu.device());
  const at::Tensor seed = device_seed(op, seed_tensor, mu);
  const at::Tensor dense_mu = mu.contiguous(), dense_logvar = logvar.contiguous(),
                   dense_grad_z = grad_z.contiguous(), dense_grad_kl = grad_kl.contiguous();
  at::Tensor grad_mu = at::empty(mu.sizes(), mu.options());
  at::Tensor grad_logvar = at::empty(mu.sizes(), mu.options());
  for_cuda_dtype(op, mu.scalar_type(), [&]<typename T>(T) {
    C10_CUDA_CHECK(cuda::launch_reparam_kl_bwd(
        static_cast<const T*>(dense_grad_z.const_data_ptr()), dense_grad_kl.const_data_ptr<float>(),
        static_cast<const T*>(dense_mu.const_data_ptr()),
        static_cast<const T*>(dense_logvar.const_data_ptr()), seed.const_data_ptr<int64_t>(),
        static_cast<T*>(grad_mu.mutable_data_ptr()),
        static_cast<T*>(grad_logvar.mutable_data_ptr()), mu.size(0), row_size_of(mu),
        c10::cuda::getCurrentCUDAStream()));
  });
  return {in_format_of(mu, grad_mu), in_format_of(logvar, grad_logvar)};
}

#endif

}  // namespace

TORCH_LIBRARY_FRAGMENT(genimg, m) {
  m.def("reparam_kl_fwd(Tensor mu, Tensor logvar, Tensor seed) -> (Tensor, Tensor)",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "reparam_kl_bwd(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar, Tensor seed)"
      " -> (Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(genimg, CPU, m) {
  m.impl("reparam_kl_fwd", reparam_kl_fwd_cpu);
  m.impl("reparam_kl_bwd", reparam_kl_bwd_cpu);
}

#ifdef GENIMG_WITH_CUDA
TORCH_LIBRARY_IMPL(genimg, CUDA, m) {
  m.impl("reparam_kl_fwd", reparam_kl_fwd_cuda);
  m.impl("reparam_kl_bwd", reparam_kl_bwd_cuda);
}
#endif

}  // namespace genimg
