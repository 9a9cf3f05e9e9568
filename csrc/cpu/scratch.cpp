#include "scratch.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "huge_pages.h"

namespace genimg {
namespace {

constexpr size_t kKept = size_t{256} << 20;  // bytes that the pool keeps unused
constexpr size_t kGranule = size_t{1} << 16;

struct Buffer {
  float* data;
  size_t bytes;
};

struct Pool {
  std::mutex mutex;
  std::vector<Buffer> unused;  // in the order of their return
  size_t kept = 0;

  // Returns the smallest buffer that fits and is at most twice too large.
  Buffer take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    auto best = unused.end();
    for (auto it = unused.begin(); it != unused.end(); ++it) {
      const bool fits = it->bytes >= bytes && it->bytes / 2 <= bytes;
      if (fits && (best == unused.end() || it->bytes <= best->bytes)) best = it;
    }
    if (best == unused.end()) return {nullptr, 0};
    const Buffer found = *best;
    unused.erase(best);
    kept -= found.bytes;
    return found;
  }

  void give(Buffer buffer) {
    std::vector<Buffer> dropped;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      unused.push_back(buffer);
      kept += buffer.bytes;
      while (kept > kKept) {
        dropped.push_back(unused.front());
        kept -= unused.front().bytes;
        unused.erase(unused.begin());
      }
    }
    for (const Buffer& old : dropped) std::free(old.data);
  }
};

// Never destroyed: threads may still return buffers while the process ends.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

}  // namespace

Scratch::Scratch(size_t floats) {
  const size_t wanted = std::max<size_t>(1, floats) * sizeof(float);
  const size_t bytes = (wanted + kGranule - 1) / kGranule * kGranule;
  const Buffer found = pool().take(bytes);
  data_ = found.data;
  bytes_ = found.bytes;
  if (data_ != nullptr) return;
  data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
  bytes_ = bytes;
  if (data_ == nullptr) throw std::bad_alloc();
  prefer_huge_pages(data_, bytes);
}

Scratch::~Scratch() { pool().give({data_, bytes_}); }

}  // namespace genimg
