// A pool of scratch memory. Fresh pages can cost more than the kernel that fills them.
#pragma once

#include <cstddef>

namespace genimg {

// A buffer of floats on a 64-byte boundary, taken from the pool and returned to it. The pool keeps
// a bounded amount of unused memory (docs/environment.md).
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
