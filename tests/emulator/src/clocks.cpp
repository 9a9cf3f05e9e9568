// Vector clocks. A thread's epoch grows with every barrier and fence that it passes; its clock
// holds for each thread the epoch up to which that thread's accesses are ordered before its own
// next ones.
#include <algorithm>

#include "runtime.h"

namespace simt {
namespace {

using EpochsPtr = std::shared_ptr<const Epochs>;

// The clock that the atomics on an address publish: that of every fenced thread that has made one.
std::map<const void*, ClockPtr> publishers;

EpochsPtr larger(const EpochsPtr& a, const EpochsPtr& b) {
  if (!a || a == b) return b;
  if (!b) return a;
  auto merged = std::make_shared<Epochs>(*a);
  for (size_t i = 0; i < merged->size(); ++i) (*merged)[i] = std::max((*merged)[i], (*b)[i]);
  return merged;
}

void add_blocks(Clock* to, const Clock& from) {
  for (const auto& [serial, epochs] : from.blocks) {
    EpochsPtr& known = to->blocks[serial];
    known = larger(known, epochs);
  }
}

ClockPtr merged(const ClockPtr& a, const ClockPtr& b) {
  if (!a || a == b) return b;
  if (!b) return a;
  auto result = std::make_shared<Clock>(*a);
  result->own = larger(a->own, b->own);
  add_blocks(result.get(), *b);
  return result;
}

}  // namespace

void reset_clocks() {
  auto clock = std::make_shared<Clock>();
  clock->own = std::make_shared<Epochs>(block().fibers.size() + kMaxMbarriers);
  for (Fiber& fiber : block().fibers) {
    fiber.clock = clock;
    fiber.epoch = 1;
  }
}

// Afterwards every thread knows all that any of them did or knew.
void join(const std::vector<Fiber*>& threads) {
  auto clock = std::make_shared<Clock>(*threads.front()->clock);
  auto own = std::make_shared<Epochs>(*clock->own);
  const Clock* last = threads.front()->clock.get();
  ClockPtr released;
  for (Fiber* fiber : threads) {
    if (fiber->clock.get() != last) {
      last = fiber->clock.get();
      for (size_t i = 0; i < own->size(); ++i) (*own)[i] = std::max((*own)[i], (*last->own)[i]);
      add_blocks(clock.get(), *last);
    }
    released = merged(released, fiber->released);
  }
  for (Fiber* fiber : threads) {
    (*own)[fiber->thread] = std::max((*own)[fiber->thread], fiber->epoch);
  }
  clock->own = own;
  for (Fiber* fiber : threads) {
    ++fiber->epoch;
    fiber->clock = clock;
    fiber->released = released;
  }
}

// Clocks that earlier atomics have acquired take effect here; later atomics publish the clock of
// this fence, without accesses that follow it.
void fence() {
  const Busy busy;
  Fiber& self = *current();
  if (self.pending) {
    auto clock = std::make_shared<Clock>(*self.clock);
    add_blocks(clock.get(), *self.pending);
    const auto mine = clock->blocks.find(block().serial);
    if (mine != clock->blocks.end()) clock->own = larger(clock->own, mine->second);
    self.clock = clock;
    self.pending = nullptr;
  }
  auto own = std::make_shared<Epochs>(*self.clock->own);
  (*own)[self.thread] = self.epoch++;
  auto released = std::make_shared<Clock>(*self.clock);
  released->own = own;
  self.released = merged(self.released, released);
}

void publish(const void* address) {
  Fiber& self = *current();
  ClockPtr& published = publishers[address];
  if (published) self.pending = merged(self.pending, published);
  if (!self.released) return;
  auto clock = published ? std::make_shared<Clock>(*published) : std::make_shared<Clock>();
  EpochsPtr& mine = clock->blocks[block().serial];
  mine = larger(mine, self.released->own);
  add_blocks(clock.get(), *self.released);
  published = clock;
}

void release(ClockPtr* to) {
  Fiber& self = *current();
  auto clock = std::make_shared<Clock>(*self.clock);
  auto own = std::make_shared<Epochs>(*clock->own);
  (*own)[self.thread] = self.epoch++;
  clock->own = own;
  *to = merged(*to, clock);
}

void acquire(const ClockPtr& from) {
  Fiber& self = *current();
  self.clock = merged(self.clock, from);
}

void note_epoch(ClockPtr* clock, unsigned thread, uint32_t epoch) {
  auto noted = std::make_shared<Clock>(**clock);
  auto own = std::make_shared<Epochs>(*noted->own);
  (*own)[thread] = epoch;
  noted->own = own;
  *clock = noted;
}

void forget_publishers() { publishers.clear(); }

}  // namespace simt
