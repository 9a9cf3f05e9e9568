// cp.async: the bytes are read when the copy is issued and land when it is waited for, the last
// legal moment; with options().eager, at once. Reading them before the wait is always an error.
#include <cstring>

#include "runtime.h"

namespace simt {
namespace {

void check(const void* address, bool write, Kind kind, uint32_t pc) {
#if !defined(__SANITIZE_ADDRESS__)
  check_access(address, 16, write, kind, pc);
#else
  (void)address, (void)write, (void)kind, (void)pc;
#endif
}

void require_alignment(const void* address, const char* what, Site site) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
    fail(std::string("cp.async: a ") + what + " that is not aligned to 16 bytes at " + place(site));
  }
}

void land(const AsyncCopy& copy) {
  check(copy.to, true, Kind::kPlain, copy.pc);
  std::memcpy(copy.to, copy.bytes, sizeof copy.bytes);
}

}  // namespace

__attribute__((noinline)) void cp_async_16(void* shared, const void* global, bool valid,
                                           Site site) {
  const Busy busy;
  const uint32_t pc = offset_of_code(__builtin_return_address(0));
  require_alignment(shared, "target", site);
  if (valid) require_alignment(global, "source", site);
#if !defined(__SANITIZE_ADDRESS__)
  const Region* region = find_region(reinterpret_cast<uintptr_t>(shared));
  if (region == nullptr || !region->shared) {
    fail("cp.async: the target at " + place(site) + " is not in shared memory");
  }
#endif
  if (valid) check(global, false, Kind::kPlain, pc);
  check(shared, true, Kind::kAsync, pc);
  AsyncCopy copy{shared, {}, site, pc};
  if (valid) std::memcpy(copy.bytes, global, sizeof copy.bytes);
  if (options().eager) {
    std::memcpy(shared, copy.bytes, sizeof copy.bytes);
  } else {
    std::memset(shared, 0xff, sizeof copy.bytes);
  }
  current()->copies.push_back(copy);
}

void cp_async_commit() {
  const Busy busy;
  Fiber& self = *current();
  size_t grouped = 0;
  for (size_t size : self.groups) grouped += size;
  self.groups.push_back(self.copies.size() - grouped);
}

void cp_async_wait_groups(int newest, Site) {
  const Busy busy;
  Fiber& self = *current();
  while (self.groups.size() > static_cast<size_t>(newest)) {
    const auto end = self.copies.begin() + static_cast<ptrdiff_t>(self.groups.front());
    for (auto copy = self.copies.begin(); copy != end; ++copy) land(*copy);
    self.copies.erase(self.copies.begin(), end);
    self.groups.erase(self.groups.begin());
  }
}

}  // namespace simt
