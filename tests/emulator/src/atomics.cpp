// Atomics and the read-only cache, as the checker sees them.
#include "runtime.h"

namespace simt {

void check_atomic(void* address, size_t bytes, const void* pc, Site site) {
  const Busy busy;
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fail("misaligned atomic at " + place(site));
  }
#if !defined(__SANITIZE_ADDRESS__)
  check_access(address, bytes, true, Kind::kAtomic, offset_of_code(pc));
  publish(address);
#else
  (void)pc;
#endif
}

void check_read_only(const void* address, size_t bytes, Site site) {
  const Busy busy;
  if (written_in_this_launch(address, bytes)) {
    fail("__ldg of data that this launch has written, at " + place(site));
  }
}

}  // namespace simt
