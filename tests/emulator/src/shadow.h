// The checker's record of each granule of memory.
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

// `atomic` is an atomic that raced with the atomic in `write`, which is allowed. There is room for
// two readers that do not know of each other; kMany in the second refers to a ReadSet.
struct Cell {
  Record write, atomic, readers[2];
};

}  // namespace simt
