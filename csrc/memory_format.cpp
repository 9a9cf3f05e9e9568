#include "memory_format.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/MemoryFormat.h>
#include <c10/util/strides.h>

#include <algorithm>

#include "../kernels/cpu/transpose.h"
#include "cpu/huge_pages.h"

namespace genimg {
namespace {

void transpose(const at::Tensor& from, at::Tensor& to, int64_t rows, int64_t columns) {
  const int64_t matrices = from.size(0);
  const int64_t pieces = (columns + cpu::kTransposeColumns - 1) / cpu::kTransposeColumns;
  const int64_t grain = 1 + 16384 / (rows * cpu::kTransposeColumns);
  const void* source = from.const_data_ptr();
  void* target = to.mutable_data_ptr();
  const bool bf16 = from.scalar_type() == at::kBFloat16;
  at::parallel_for(0, matrices * pieces, grain, [&](int64_t begin, int64_t end) {
    if (bf16) {
      GENIMG_CPU_KERNEL(transpose_bf16)
      (static_cast<const uint16_t*>(source), static_cast<uint16_t*>(target), rows, columns, begin,
       end);
    } else {
      GENIMG_CPU_KERNEL(transpose_f32)
      (static_cast<const float*>(source), static_cast<float*>(target), rows, columns, begin, end);
    }
  });
}

}  // namespace

at::Tensor in_format(const at::Tensor& x, at::MemoryFormat format) {
  if (x.is_contiguous(format)) return x;
  const bool pixels = format == at::MemoryFormat::ChannelsLast;
  const auto other = pixels ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast;
  const bool served = x.dim() == 4 && x.numel() > 0 && x.is_contiguous(other) &&
                      (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
  if (!served) return x.contiguous(format);
  at::Tensor copy = at::empty(x.sizes(), x.options(), format);
  prefer_huge_pages(copy.mutable_data_ptr(), copy.nbytes());
  const int64_t channels = x.size(1), plane = x.size(2) * x.size(3);
  transpose(x, copy, pixels ? channels : plane, pixels ? plane : channels);
  return copy;
}

bool fits_both_formats(at::IntArrayRef sizes) {
  if (sizes.size() < 4) return false;
  const auto planes = sizes.slice(2);
  return sizes[1] == 1 ||
         std::all_of(planes.begin(), planes.end(), [](int64_t size) { return size == 1; });
}

at::Tensor with_strides_of(at::MemoryFormat format, const at::Tensor& result) {
  const bool pixels = format == at::MemoryFormat::ChannelsLast;
  const c10::DimVector strides =
      pixels ? c10::DimVector(c10::get_channels_last_strides_2d(result.sizes()))
             : c10::contiguous_strides(result.sizes());
  if (result.strides() != at::IntArrayRef(strides)) {
    TORCH_INTERNAL_ASSERT(result.is_contiguous(format));
    result.unsafeGetTensorImpl()->set_sizes_and_strides(result.sizes(), strides);
  }
  return result;
}

at::Tensor empty_elementwise(const at::Tensor& x) {
  for (const auto format : {at::MemoryFormat::Contiguous, at::MemoryFormat::ChannelsLast}) {
    if (x.dim() != 4 && format != at::MemoryFormat::Contiguous) break;
    if (x.is_contiguous(format)) return at::empty(x.sizes(), x.options(), format);
  }
  return at::empty_like(x);
}

}  // namespace genimg
