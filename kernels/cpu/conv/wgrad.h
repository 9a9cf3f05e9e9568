// The weight's gradient from the small and the large image: see conv.h. It is the adjoint of dgrad
// in its weight, and has its forms: acc[u] += a^T g over tiles, for every term (a, u) of a product
// and the product's own gradient g.
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
// order; chunks come one after the other.
struct WgradChunk {
  int64_t pass, first, used;
  int64_t products;  // items that multiplying falls into
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
// Tiles [begin, end) of the chunk.
GENIMG_DECLARE_CPU_KERNEL(conv_wgrad_load_f32, const WgradCall& call, const WgradChunk& chunk,
                          int64_t begin, int64_t end)
GENIMG_DECLARE_CPU_KERNEL(conv_wgrad_load_bf16, const WgradCall& call, const WgradChunk& chunk,
                          int64_t begin, int64_t end)
GENIMG_DECLARE_CPU_KERNEL(conv_wgrad_multiply, const WgradCall& call, const WgradChunk& chunk,
                          int64_t begin, int64_t end)
// Channels [begin, end) of the small image, of the gradient [small_c, large_c, kernel_h, kernel_w],
// or of one whose memory is [small_c, kernel_h, kernel_w, large_c]: `pixels`.
GENIMG_DECLARE_CPU_KERNEL(conv_wgrad_finish_f32, const WgradCall& call, float* grad_weight,
                          bool pixels, int64_t begin, int64_t end)
GENIMG_DECLARE_CPU_KERNEL(conv_wgrad_finish_bf16, const WgradCall& call, uint16_t* grad_weight,
                          bool pixels, int64_t begin, int64_t end)

}  // namespace genimg::cpu
