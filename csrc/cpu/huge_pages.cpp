#include "huge_pages.h"

#include <ATen/ops/empty.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace genimg {

void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHuge * kHuge;
  if (begin >= end) return;
  // If the system refuses, the pages stay small.
  static_cast<void>(madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE));
#endif
}

at::Tensor empty_channels_last(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor image = at::empty(sizes, options, at::MemoryFormat::ChannelsLast);
  prefer_huge_pages(image.mutable_data_ptr(), image.nbytes());
  return image;
}

}  // namespace genimg
