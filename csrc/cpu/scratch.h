// Scratch memory that is used again: fresh pages cost more than many a kernel that fills them.
#pragma once

#include <cstddef>

namespace genimg {

// A buffer of floats on a 64-byte boundary, from the pool and back to it. What the pool keeps
// unused is bounded (docs/environment.md).
class Scratch {
 public:
  explicit Scratch(size_t floats);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* data() const { return data_; }

 private:
  float* data_;
  size_t bytes_;
};

}  // namespace genimg
