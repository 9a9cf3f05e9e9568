// Selects the algorithm of a convolution.
#pragma once

#include "col2im.h"
#include "few.h"

namespace genimg::cpu::GENIMG_ISA {

inline bool fits_winograd(const ConvGeometry& g) {
  return g.kernel_h == 4 && g.kernel_w == 4 && g.stride_h == 2 && g.stride_w == 2 && g.pad_h == 1 &&
         g.pad_w == 1 && g.large_h == 2 * g.small_h && g.large_w == 2 * g.small_w;
}

// With fewer tiles, reading the weight dominates, and F(2,2) makes 36 matrices of its 16 taps.
constexpr int64_t kFewTiles = 8;

// Up to this side F(3,2) saves few products over F(2,2), and its packed weight is larger.
constexpr int64_t kSmallSide = 5;

inline ConvAlgorithm winograd_or_direct(const ConvGeometry& g) {
  const int64_t tiles = g.batch * divide_up(g.small_h, 2) * divide_up(g.small_w, 2);
  if (!fits_winograd(g) || tiles <= kFewTiles) return ConvAlgorithm::direct;
  const int64_t side = larger(g.small_h, g.small_w);
  return side <= kSmallSide ? ConvAlgorithm::winograd_f2x2 : ConvAlgorithm::winograd_f3x2;
}

inline bool fits_col2im(const ConvGeometry& g) {
  return g.kernel_h == 4 && g.kernel_w == 4 && g.batch * g.small_h * g.small_w <= kFewPixels;
}

// `plain`: the epilogue is plain and takes no moments.
inline ConvAlgorithm algorithm_of(const ConvGeometry& g, ConvDirection direction, bool plain) {
  const bool few = direction == ConvDirection::fprop || plain;
  if (few && g.large_c <= kFewChannels) return ConvAlgorithm::few;
  if (direction == ConvDirection::dgrad && fits_col2im(g)) return ConvAlgorithm::col2im;
  return winograd_or_direct(g);
}

inline ConvAlgorithm wgrad_algorithm(const ConvGeometry& g) {
  return g.large_c <= kFewChannels ? ConvAlgorithm::few : winograd_or_direct(g);
}

}  // namespace genimg::cpu::GENIMG_ISA
