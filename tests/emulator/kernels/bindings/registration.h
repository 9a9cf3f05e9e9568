// Included before everything else in csrc/: registers its CUDA ops for CPU tensors as
// torch.ops.genimg_bindings, beside torch.ops.genimg; the CPU ops are left out.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#undef TORCH_LIBRARY_FRAGMENT
#define TORCH_LIBRARY_FRAGMENT(ns, m) _TORCH_LIBRARY_FRAGMENT(genimg_bindings, m, C10_UID)

#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(ns, k, m) GENIMG_BINDINGS_##k(m)
#define GENIMG_BINDINGS_CUDA(m) _TORCH_LIBRARY_IMPL(genimg_bindings, CPU, m, C10_UID)
#define GENIMG_BINDINGS_CPU(m) [[maybe_unused]] static void left_out(torch::Library& m)
