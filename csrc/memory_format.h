// Images between NCHW and NHWC, faster than at::contiguous.
#pragma once

#include <ATen/core/Tensor.h>

namespace genimg {

// x itself where it lies so, else a dense copy in the format.
at::Tensor in_format(const at::Tensor& x, at::MemoryFormat format);

inline at::Tensor as_pixels(const at::Tensor& x) {
  return in_format(x, at::MemoryFormat::ChannelsLast);
}

}  // namespace genimg
