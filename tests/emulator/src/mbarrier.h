// The mbarriers of the block that runs, and the TMA loads that complete on them.
#pragma once

#include "hopper.h"
#include "runtime.h"

namespace simt {

struct Mbarrier {
  unsigned number;             // in the block
  unsigned arrivals, missing;  // of a phase; of this phase
  int64_t bytes;               // that are still to come in this phase
  uint32_t phase, first_phase;
  unsigned initialiser;
  bool is_visible;           // to TMA
  bool has_unawaited;        // bytes that no thread has waited for
  ClockPtr arriving, known;  // clocks of this phase's arrivals; of the last phase's
};

Mbarrier& mbarrier_at(const void* address, Site site);
void complete_bytes(const void* address, unsigned bytes);
void clear_bulk_copies();

}  // namespace simt
