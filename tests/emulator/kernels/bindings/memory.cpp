// Registers the memory that an op allocates while it runs with the emulator, which checks exact
// bounds and reads of bytes that neither the op nor a kernel has written.
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "c10/cuda/CUDAException.h"
#include "testing.h"

namespace genimg::bindings {
namespace {

constexpr size_t kAlignment = 512;  // that of torch's allocator on a GPU
constexpr int kPoison = 0xff;

struct Block {
  unsigned char* begin;
  size_t bytes;
  bool seen = false;   // by a launch
  bool freed = false;  // by the op; kernels may still access it
};

bool watching = false;
int launches = 0;
std::vector<Block> blocks;
c10::Allocator* usual = nullptr;

void free_block(void* begin) {
  const auto found = std::find_if(blocks.begin(), blocks.end(),
                                  [=](const Block& block) { return block.begin == begin; });
  if (watching && found != blocks.end()) {
    found->freed = true;
  } else {
    std::free(begin);
  }
}

struct Watched final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* begin = nullptr;
    if (bytes > 0) {
      TORCH_CHECK(posix_memalign(&begin, kAlignment, bytes) == 0, "no memory");
      std::memset(begin, kPoison, bytes);
      blocks.push_back({static_cast<unsigned char*>(begin), bytes});
      simt_add_buffer("memory of the op", begin, bytes, 2, false, false);
    }
    return {begin, begin, &free_block, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

Watched watched;

}  // namespace

void check(const std::function<cudaError_t()>& launch) {
  ++launches;
  for (Block& block : blocks) {
    if (block.seen) continue;
    block.seen = true;
    const bool written = std::any_of(block.begin, block.begin + block.bytes,
                                     [](unsigned char byte) { return byte != kPoison; });
    if (written) simt_add_buffer("memory of the op", block.begin, block.bytes, 2, false, true);
  }
  TORCH_CHECK(simt::guarded(launch) == 0, simt_error());
}

}  // namespace genimg::bindings

SIMT_EXPORT void bindings_begin() {
  using namespace genimg::bindings;
  usual = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&watched, /*priority=*/255);
  watching = true;
  launches = 0;
}

SIMT_EXPORT void bindings_end() {
  using namespace genimg::bindings;
  watching = false;
  c10::SetCPUAllocator(usual, /*priority=*/255);
  simt_clear_buffers();
  for (const Block& block : blocks) {
    if (block.freed) std::free(block.begin);
  }
  blocks.clear();
}

// Launches since bindings_begin().
SIMT_EXPORT int bindings_launches() { return genimg::bindings::launches; }
