// mbarriers: a phase ends when all threads have arrived and the announced bytes have come. The
// clock of an arrival passes to the threads that wait for its phase, and to no others.
#include "mbarrier.h"

#include <string>

namespace simt {
namespace {

std::map<const void*, Mbarrier> mbarriers;

void check(uint64_t* address, Kind kind, uint32_t pc) {
  if (kChecked) check_access(address, sizeof *address, true, kind, pc);
}

void end_phase_if_complete(Mbarrier* barrier, const void* address) {
  if (barrier->missing != 0 || barrier->bytes != 0) return;
  note_epoch(&barrier->arriving, static_cast<unsigned>(block().fibers.size()) + barrier->number,
             barrier->phase);
  barrier->known = barrier->arriving;
  barrier->arriving = nullptr;
  barrier->missing = barrier->arrivals;
  ++barrier->phase;
  for (Fiber& fiber : block().fibers) {
    if (fiber.state == State::kSpin && fiber.mbarrier == address) fiber.state = State::kReady;
  }
}

void arrive(uint64_t* address, unsigned bytes, Site site, uint32_t pc) {
  check(address, Kind::kAtomic, pc);
  Mbarrier& barrier = mbarrier_at(address, site);
  if (barrier.missing == 0) {
    fail("mbarrier: more arrivals than " + std::to_string(barrier.arrivals) + " in a phase, at " +
         place(site));
  }
  --barrier.missing;
  barrier.bytes += bytes;
  release(&barrier.arriving);
  end_phase_if_complete(&barrier, address);
}

}  // namespace

Mbarrier& mbarrier_at(const void* address, Site site) {
  const auto found = mbarriers.find(address);
  if (found == mbarriers.end()) fail("mbarrier that was not initialised at " + place(site));
  return found->second;
}

void complete_bytes(const void* address, unsigned bytes) {
  Mbarrier& barrier = mbarriers.at(address);
  barrier.bytes -= bytes;
  barrier.has_unawaited = true;
  end_phase_if_complete(&barrier, address);
}

void clear_mbarriers() {
  mbarriers.clear();
  clear_bulk_copies();
}

std::string describe_unawaited_load() {
  for (const auto& [address, barrier] : mbarriers) {
    if (barrier.has_unawaited) return "the block ends before a TMA load has been waited for";
  }
  return {};
}

std::string describe_spinner() {
  for (const Fiber& fiber : block().fibers) {
    if (fiber.state != State::kSpin) continue;
    const Mbarrier& barrier = mbarriers.at(fiber.mbarrier);
    return "mbarrier: thread " + thread_name(fiber.thread) + " waits for ever at " +
           place(fiber.site) + ": " + std::to_string(barrier.missing) + " arrivals and " +
           std::to_string(barrier.bytes) + " bytes are missing";
  }
  return {};
}

__attribute__((noinline)) void mbarrier_init(uint64_t* address, unsigned arrivals, Site site) {
  const Busy busy;
  if (reinterpret_cast<uintptr_t>(address) % 8 != 0) {
    fail("mbarrier that is not aligned to 8 bytes at " + place(site));
  }
  const Region* region = find_region(reinterpret_cast<uintptr_t>(address));
  if (region == nullptr || !region->shared) {
    fail("mbarrier that is not in shared memory at " + place(site));
  }
  check(address, Kind::kPlain, offset_of_code(__builtin_return_address(0)));
  *address = 0;
  const bool is_new = mbarriers.find(address) == mbarriers.end();
  Mbarrier& barrier = mbarriers[address];
  const auto number = is_new ? static_cast<unsigned>(mbarriers.size()) - 1 : barrier.number;
  if (number >= kMaxMbarriers) fail("more mbarriers than the emulator knows at " + place(site));
  const uint32_t phase = is_new ? 1 : barrier.phase + 2;
  barrier = {number, arrivals, arrivals, 0, phase, phase, current()->thread, false, false, {}, {}};
}

void mbarrier_init_fence() {
  const Busy busy;
  for (auto& [address, barrier] : mbarriers) {
    if (barrier.initialiser == current()->thread) barrier.is_visible = true;
  }
}

__attribute__((noinline)) void mbarrier_arrive(uint64_t* address, Site site) {
  const Busy busy;
  arrive(address, 0, site, offset_of_code(__builtin_return_address(0)));
}

__attribute__((noinline)) void mbarrier_arrive_expect(uint64_t* address, unsigned bytes,
                                                      Site site) {
  const Busy busy;
  arrive(address, bytes, site, offset_of_code(__builtin_return_address(0)));
}

__attribute__((noinline)) void mbarrier_wait(uint64_t* address, unsigned parity, Site site) {
  const Busy busy;
  check(address, Kind::kAtomic, offset_of_code(__builtin_return_address(0)));
  Mbarrier& barrier = mbarrier_at(address, site);
  while (((barrier.phase - barrier.first_phase) & 1) == (parity & 1)) {
    current()->mbarrier = address;
    yield(State::kSpin, "mbarrier_wait", site);
  }
  barrier.has_unawaited = false;
  acquire(barrier.known);
}

// Closes the epoch: writes in it, and in earlier ones, are fenced.
void fence_proxy_async() {
  const Busy busy;
  Fiber& self = *current();
  self.proxy_fences.push_back(self.epoch++);
}

}  // namespace simt
