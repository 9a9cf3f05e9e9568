#include "contraction.h"

#include <ATen/Parallel.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <atomic>

#include "../../kernels/cpu/conv/dgrad.h"
#include "../../kernels/cpu/conv/fprop.h"
#include "../../kernels/cpu/conv/pack.h"
#include "../../kernels/cpu/conv/wgrad.h"
#include "../memory_format.h"
#include "scratch.h"

namespace genimg {

using cpu::ConvCall;
using cpu::ConvDirection;
using cpu::ConvGeometry;
using cpu::ConvPlan;

ConvGeometry conv_geometry(const at::Tensor& small, const at::Tensor& large,
                           const at::Tensor& weight, at::IntArrayRef stride,
                           at::IntArrayRef padding) {
  ConvGeometry g = {};
  g.batch = small.size(0);
  g.small_c = small.size(1);
  g.small_h = small.size(2);
  g.small_w = small.size(3);
  g.large_c = large.size(1);
  g.large_h = large.size(2);
  g.large_w = large.size(3);
  g.kernel_h = weight.size(2);
  g.kernel_w = weight.size(3);
  // One pixel meets every tap once, whatever the stride. With this stride each tap has a phase of
  // its own, and no kernel visits taps that miss the image.
  g.stride_h = g.small_h == 1 && g.large_h <= cpu::kMaxKernel ? g.large_h : stride[0];
  g.stride_w = g.small_w == 1 && g.large_w <= cpu::kMaxKernel ? g.large_w : stride[1];
  g.pad_h = padding[0];
  g.pad_w = padding[1];
  return g;
}

namespace {

ConvPlan plan_of(const ConvGeometry& geometry, ConvDirection direction, bool plain) {
  ConvPlan plan;
  GENIMG_CPU_KERNEL(conv_plan)(geometry, direction, plain, &plan);
  return plan;
}

void pack(const ConvGeometry& geometry, ConvDirection direction, const ConvPlan& plan,
          const at::Tensor& weight, cpu::WeightOrder order, float* packed, int* refused) {
  const bool bf16 = weight.scalar_type() == at::kBFloat16;
  const void* from = weight.const_data_ptr();
  const int64_t grain =
      std::max<int64_t>(1, plan.packing * 16384 / std::max<int64_t>(1, plan.packed));
  at::parallel_for(0, plan.packing, grain, [&](int64_t begin, int64_t end) {
    if (bf16) {
      GENIMG_CPU_KERNEL(conv_pack_bf16)
      (geometry, direction, plan.form, order, static_cast<const uint16_t*>(from), packed, refused,
       begin, end);
    } else {
      GENIMG_CPU_KERNEL(conv_pack_f32)
      (geometry, direction, plan.form, order, static_cast<const float*>(from), packed, refused,
       begin, end);
    }
  });
}

void run(const ConvCall& call, ConvDirection direction, bool bf16, float* scratch, int64_t begin,
         int64_t end) {
  if (direction == ConvDirection::dgrad) {
    (bf16 ? GENIMG_CPU_KERNEL(conv_dgrad_bf16) : GENIMG_CPU_KERNEL(conv_dgrad_f32))(call, scratch,
                                                                                    begin, end);
  } else {
    (bf16 ? GENIMG_CPU_KERNEL(conv_fprop_bf16) : GENIMG_CPU_KERNEL(conv_fprop_f32))(call, scratch,
                                                                                    begin, end);
  }
}

// Calls work(scratch, begin, end) on torch's threads. Units differ in size, so that each thread
// takes the next ones when it is free; a unit's result does not depend on the thread.
template <typename Work>
void each_unit(int64_t units, int64_t scratch_floats, Work work) {
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), units);
  const int64_t chunk = std::max<int64_t>(1, units / (threads * 16));
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    const Scratch scratch(scratch_floats);
    for (int64_t thread = first; thread < last; ++thread) {
      while (true) {
        const int64_t begin = next.fetch_add(chunk);
        if (begin >= units) break;
        work(scratch.data(), begin, std::min(begin + chunk, units));
      }
    }
  });
}

// Whether the kernels read a channels_last weight as it lies.
bool reads_channels_last(const ConvGeometry& geometry, ConvDirection direction,
                         const ConvPlan& plan, const at::Tensor& weight) {
  return direction == ConvDirection::dgrad && plan.form != cpu::ConvAlgorithm::few &&
         geometry.large_c % cpu::kChannelBlock == 0 &&
         weight.is_contiguous(at::MemoryFormat::ChannelsLast) && !weight.is_contiguous();
}

}  // namespace

int64_t moment_pieces(const ConvGeometry& geometry, ConvDirection direction) {
  return plan_of(geometry, direction, false).pieces;
}

bool contract(const ConvGeometry& geometry, ConvDirection direction, const at::Tensor& given_weight,
              const cpu::Prologue& prologue, const cpu::Epilogue& epilogue) {
  RECORD_FUNCTION(direction == ConvDirection::dgrad ? "genimg::conv_dgrad" : "genimg::conv_fprop",
                  c10::ArrayRef<const c10::IValue>{});
  const bool plain = epilogue.kind == cpu::Epilogue::plain && epilogue.counts == nullptr;
  const ConvPlan plan = plan_of(geometry, direction, plain);
  const bool channels_last = reads_channels_last(geometry, direction, plan, given_weight);
  const auto order = channels_last ? cpu::WeightOrder::channels_last : cpu::WeightOrder::taps_last;
  const at::Tensor weight =
      channels_last ? given_weight : in_format(given_weight, at::MemoryFormat::Contiguous);
  int refused = 0;
  const Scratch packed(plan.packed);
  pack(geometry, direction, plan, weight, order, packed.data(), &refused);
  const ConvCall call = {geometry, plan.form,     prologue,
                         epilogue, packed.data(), weight.const_data_ptr(),
                         order,    &refused};
  const bool bf16 = weight.scalar_type() == at::kBFloat16;
  each_unit(plan.units, plan.scratch, [&](float* scratch, int64_t begin, int64_t end) {
    run(call, direction, bf16, scratch, begin, end);
  });
  return !refused;
}

bool contract_weight(const ConvGeometry& geometry, const cpu::Prologue& small,
                     const cpu::Prologue& large, at::Tensor& grad_weight) {
  RECORD_FUNCTION("genimg::conv_wgrad", c10::ArrayRef<const c10::IValue>{});
  const bool bf16 = grad_weight.scalar_type() == at::kBFloat16;
  int refused = 0;
  cpu::WgradPlan plan;
  GENIMG_CPU_KERNEL(conv_wgrad_plan)(geometry, &plan);
  const Scratch small_values(plan.small), large_values(plan.large), sums(plan.sums);
  const cpu::WgradCall call = {
      geometry,    plan,    small, large, small_values.data(), large_values.data(),
      sums.data(), &refused};
  at::parallel_for(0, plan.sums, 65536, [&](int64_t begin, int64_t end) {
    std::fill(call.sums + begin, call.sums + end, 0.0f);
  });
  for (int64_t number = 0; number < plan.chunks; ++number) {
    cpu::WgradChunk chunk;
    GENIMG_CPU_KERNEL(conv_wgrad_chunk)(geometry, plan, number, &chunk);
    at::parallel_for(0, chunk.used, 4, [&](int64_t begin, int64_t end) {
      (bf16 ? GENIMG_CPU_KERNEL(conv_wgrad_load_bf16) : GENIMG_CPU_KERNEL(conv_wgrad_load_f32))(
          call, chunk, begin, end);
    });
    if (refused) return false;
    at::parallel_for(0, chunk.products, 1, [&](int64_t begin, int64_t end) {
      GENIMG_CPU_KERNEL(conv_wgrad_multiply)(call, chunk, begin, end);
    });
  }
  void* out = grad_weight.mutable_data_ptr();
  const bool pixels = !grad_weight.is_contiguous();
  at::parallel_for(0, geometry.small_c, 4, [&](int64_t begin, int64_t end) {
    if (bf16) {
      GENIMG_CPU_KERNEL(conv_wgrad_finish_bf16)(call, static_cast<uint16_t*>(out), pixels, begin,
                                                end);
    } else {
      GENIMG_CPU_KERNEL(conv_wgrad_finish_f32)(call, static_cast<float*>(out), pixels, begin, end);
    }
  });
  return true;
}

}  // namespace genimg
