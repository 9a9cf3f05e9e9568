// What the checker remembers of each granule of memory.
#pragma once

#include "runtime.h"

namespace simt {

struct Record {
  uint32_t serial;  // of the block; 0 is none
  uint32_t epoch;
  uint32_t pc;
  uint16_t thread;
  Kind kind;
  uint8_t since_fence;  // of an atomic: epochs since the fence that it publishes
};

// `atomic` is an atomic that raced with the atomic in `write`, which is allowed. Of readers that
// know nothing of each other there is room for two; kMany in the second refers to a ReadSet.
struct Cell {
  Record write, atomic, readers[2];
};

}  // namespace simt
