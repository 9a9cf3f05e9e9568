// Images between NCHW and NHWC, faster than at::contiguous, and the strides that torch gives them.
#pragma once

#include <ATen/core/Tensor.h>

namespace genimg {

// x itself where it lies so, else a dense copy in the format.
at::Tensor in_format(const at::Tensor& x, at::MemoryFormat format);

inline at::Tensor to_channels_last(const at::Tensor& x) {
  return in_format(x, at::MemoryFormat::ChannelsLast);
}

// A size of 1 lets both formats fit: the same values in the same order, under other strides.
bool fits_both_formats(at::IntArrayRef sizes);

// A result that nobody else holds, dense in the format, with just the strides that torch gives it.
at::Tensor with_strides_of(at::MemoryFormat format, const at::Tensor& result);

inline at::Tensor result_in_format(const at::Tensor& result, at::MemoryFormat format) {
  return with_strides_of(format, in_format(result, format));
}

// A result of torch's elementwise ops, which take the contiguous format where both fit.
at::Tensor empty_elementwise(const at::Tensor& x);

}  // namespace genimg
