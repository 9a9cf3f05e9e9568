// Images between NCHW and NHWC, faster than at::contiguous, and the strides that torch gives them.
#pragma once

#include <ATen/core/Tensor.h>

namespace genimg {

// x itself where it has this format, else a dense copy in it.
at::Tensor in_format(const at::Tensor& x, at::MemoryFormat format);

inline at::Tensor to_channels_last(const at::Tensor& x) {
  return in_format(x, at::MemoryFormat::ChannelsLast);
}

// Whether a size of 1 lets both formats fit: they then have the same order and differ in strides.
bool fits_both_formats(at::IntArrayRef sizes);

// A fresh result, dense in the format, with exactly the strides that torch gives it.
at::Tensor with_strides_of(at::MemoryFormat format, const at::Tensor& result);

inline at::Tensor result_in_format(const at::Tensor& result, at::MemoryFormat format) {
  return with_strides_of(format, in_format(result, format));
}

// A result of torch's elementwise ops, which are contiguous where both formats fit.
at::Tensor empty_elementwise(const at::Tensor& x);

}  // namespace genimg
