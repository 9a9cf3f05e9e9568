// wgrad: the weight's gradient from the small and the large image; see geometry.h. It is the
// adjoint of dgrad in its weight and uses the same algorithms: acc[u] += a^T g over tiles, for
// every term (a, u) of a product and the product's own gradient g.
#pragma once

#include "geometry.h"

namespace genimg::cpu {

struct WgradPlan {
  ConvAlgorithm form;
  int64_t rows;  // tiles of a chunk
  int64_t chunks;
  int64_t small, large, sums;  // floats of the transformed images, and of the sums
};

// Tiles [first, first + used) of a pass. They are loaded in any order, then multiplied in any
// order; chunks are processed in order.
struct WgradChunk {
  int64_t pass, first, used;
  int64_t products;  // items of the multiplication
};

struct WgradCall {
  ConvGeometry geometry;
  WgradPlan plan;
  Prologue small, large;
  float *small_values, *large_values, *sums;  // sums begin as 0
  int* refused;                               // see ConvCall
};

GENIMG_DECLARE_CPU_KERNEL(conv_wgrad_plan, const ConvGeometry& geometry, WgradPlan* plan)
GENIMG_DECLARE_CPU_KERNEL(conv_wgrad_chunk, const ConvGeometry& geometry, const WgradPlan& plan,
                          int64_t number, WgradChunk* chunk)
// Loads tiles [begin, end) of the chunk.
GENIMG_DECLARE_CPU_KERNEL(conv_wgrad_load_f32, const WgradCall& call, const WgradChunk& chunk,
                          int64_t begin, int64_t end)
GENIMG_DECLARE_CPU_KERNEL(conv_wgrad_load_bf16, const WgradCall& call, const WgradChunk& chunk,
                          int64_t begin, int64_t end)
GENIMG_DECLARE_CPU_KERNEL(conv_wgrad_multiply, const WgradCall& call, const WgradChunk& chunk,
                          int64_t begin, int64_t end)
// Writes channels [begin, end) of the small image of the gradient [small_c, large_c, kernel_h,
// kernel_w], or, with `pixels`, of one whose memory is [small_c, kernel_h, kernel_w, large_c].
GENIMG_DECLARE_CPU_KERNEL(conv_wgrad_finish_f32, const WgradCall& call, float* grad_weight,
                          bool pixels, int64_t begin, int64_t end)
GENIMG_DECLARE_CPU_KERNEL(conv_wgrad_finish_bf16, const WgradCall& call, uint16_t* grad_weight,
                          bool pixels, int64_t begin, int64_t end)

}  // namespace genimg::cpu
