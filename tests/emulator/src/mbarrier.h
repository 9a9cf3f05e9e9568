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
  bool has_unawaited;        // bytes, which nobody has waited for
  ClockPtr arriving, known;  // what this phase's arrivals know; what those of the last one did
};

Mbarrier& mbarrier_at(const void* address, Site site);
void complete_bytes(const void* address, unsigned bytes);
void clear_bulk_copies();

}  // namespace simt
