// Large buffers that are written at once: in huge pages, where the system grants them, a first
// touch costs a few hundred times fewer page faults.
#pragma once

#include <ATen/core/Tensor.h>

namespace genimg {

// A hint about [data, data + bytes), which nothing has touched yet.
void prefer_huge_pages(void* data, size_t bytes);

// A dense NHWC image, not initialised.
at::Tensor empty_channels_last(at::IntArrayRef sizes, const at::TensorOptions& options);

}  // namespace genimg
