// Every access of a kernel comes here: bounds, initialisation, and whether it is ordered after the
// accesses that it conflicts with (docs/emulation.md has the rules).
#include "shadow.h"

#include <algorithm>

namespace simt {
namespace {

// All readers of a granule of shared memory, by thread, since the last barrier of the block.
struct ReadSet {
  uint32_t barriers;
  std::vector<Record> by_thread;
};

std::vector<ReadSet> read_sets;

struct Access {
  uintptr_t address;
  const Region& region;
  const char* what;
  uint32_t pc;
};

std::string where(const Access& access) {
  return access.region.name + "+" + std::to_string(access.address - access.region.begin);
}

[[noreturn]] void report_race(const Access& access, const Record& other, const char* did) {
  const bool same = other.serial == block().serial;
  fail("race on " + where(access) + ": " + access.what + " at " + place(access.pc) +
       " is not ordered after " + did + " by " + (same ? "" : "another block's ") + "thread " +
       thread_name(other.thread) + " at " + place(other.pc));
}

bool is_ordered(const Record& record, bool shared) {
  const Block& running = block();
  const Fiber& self = *current();
  if (record.serial < running.first_serial) return true;
  if (record.serial == running.serial) {
    return record.thread == self.thread || (*self.clock->own)[record.thread] >= record.epoch;
  }
  if (shared) return true;
  // Whoever has acquired a fence by way of an atomic knows that atomic, too.
  const auto known = self.clock->blocks.find(record.serial);
  return known != self.clock->blocks.end() &&
         (*known->second)[record.thread] >= record.epoch - record.since_fence;
}

const char* name_of(Kind kind) {
  return kind == Kind::kAtomic  ? "an atomic"
         : kind == Kind::kAsync ? "a cp.async that was not waited for"
                                : "a write";
}

Record record_of(Kind kind, uint32_t pc) {
  const Fiber& self = *current();
  uint32_t since_fence = 0;
  if (kind == Kind::kAtomic && self.released) {
    since_fence = std::min(255u, self.epoch - (*self.released->own)[self.thread]);
  }
  return {block().serial,
          self.epoch,
          pc,
          static_cast<uint16_t>(self.thread),
          kind,
          static_cast<uint8_t>(since_fence)};
}

void check_initialised(const Access& access, const Cell& cell) {
  if (access.region.initialised) return;
  const bool written =
      access.region.shared ? cell.write.serial == block().serial : cell.write.serial != 0;
  if (!written) {
    fail("read of uninitialised " + where(access) + " at " + place(access.pc));
  }
}

void remember_reader(Cell* cell, bool shared, uint32_t pc) {
  const Record self = record_of(Kind::kPlain, pc);
  Record& first = cell->readers[0];
  Record& second = cell->readers[1];
  const bool many = second.kind == Kind::kMany && second.serial == self.serial;
  if (many && read_sets[second.epoch].barriers == block().barriers) {
    read_sets[second.epoch].by_thread[self.thread] = self;
    return;
  }
  if (many || is_ordered(first, shared)) {
    first = self;
    if (many || is_ordered(second, shared)) second = {};
    return;
  }
  if (is_ordered(second, shared) || !shared) {
    second = self;
    return;
  }
  ReadSet set{block().barriers, std::vector<Record>(block().fibers.size())};
  for (const Record& reader : {first, second, self}) set.by_thread[reader.thread] = reader;
  second = {self.serial, static_cast<uint32_t>(read_sets.size()), 0, 0, Kind::kMany, 0};
  read_sets.push_back(std::move(set));
}

void check_read(const Access& access, Cell* cell) {
  const bool shared = access.region.shared;
  check_initialised(access, *cell);
  if (!is_ordered(cell->write, shared) ||
      (cell->write.kind == Kind::kAsync && cell->write.serial == block().serial)) {
    report_race(access, cell->write, name_of(cell->write.kind));
  }
  if (!is_ordered(cell->atomic, shared)) report_race(access, cell->atomic, "an atomic");
  if (!access.region.read_only) remember_reader(cell, shared, access.pc);
}

void check_readers(const Access& access, const Cell& cell) {
  const bool shared = access.region.shared;
  if (!is_ordered(cell.readers[0], shared)) report_race(access, cell.readers[0], "a read");
  const Record& second = cell.readers[1];
  if (second.kind != Kind::kMany) {
    if (!is_ordered(second, shared)) report_race(access, second, "a read");
    return;
  }
  if (second.serial != block().serial) return;
  for (const Record& reader : read_sets[second.epoch].by_thread) {
    if (!is_ordered(reader, shared)) report_race(access, reader, "a read");
  }
}

void check_write(const Access& access, Cell* cell, Kind kind) {
  const bool shared = access.region.shared;
  const bool both_atomic = kind == Kind::kAtomic && cell->write.kind == Kind::kAtomic;
  const bool after_write = is_ordered(cell->write, shared);
  const bool pending = cell->write.kind == Kind::kAsync && cell->write.serial == block().serial &&
                       cell->write.thread != current()->thread;
  if ((!after_write && !both_atomic) || pending) {
    report_race(access, cell->write, name_of(cell->write.kind));
  }
  if (kind != Kind::kAtomic && !is_ordered(cell->atomic, shared)) {
    report_race(access, cell->atomic, "an atomic");
  }
  check_readers(access, *cell);
  if (both_atomic && !after_write) {
    cell->atomic = cell->write;
  } else if (is_ordered(cell->atomic, shared)) {
    cell->atomic = {};
  }
  cell->write = record_of(kind, access.pc);
  cell->readers[0] = cell->readers[1] = {};
}

// Memory that is no region's: a thread's own stack, the launch's arguments, constants.
void check_elsewhere(uintptr_t address, bool write, uint32_t pc) {
  const char* const what = write ? "write" : "read";
  if (on_any_stack(address)) {
    fail(std::string(what) + " of another thread's local memory at " + place(pc));
  }
  if (!write && (in_call(address) || in_program(address))) return;
  if (in_program(address)) fail("write to a program variable at " + place(pc));
  fail(std::string("out-of-bounds ") + what + " " + describe_nearest(address) + ", at " +
       place(pc));
}

}  // namespace

void clear_read_sets() { read_sets.clear(); }

void check_access(const void* pointer, size_t bytes, bool write, Kind kind, uint32_t pc) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (on_own_stack(address)) return;
  const Busy busy;
  ++statistics().accesses;
  const Region* region = find_region(address);
  if (region == nullptr) return check_elsewhere(address, write, pc);
  if (address + bytes > region->end) {
    fail(std::string("out-of-bounds ") + (write ? "write" : "read") + " of " +
         std::to_string(bytes) + " bytes " + describe_nearest(address) + ", at " + place(pc));
  }
  if (write && region->read_only) {
    fail("write to " + region->name + "+" + std::to_string(address - region->begin) +
         ", an input, at " + place(pc));
  }
  const char* const what = kind == Kind::kAtomic  ? "atomic"
                           : kind == Kind::kAsync ? "cp.async"
                           : write                ? "write"
                                                  : "read";
  const uintptr_t base = region->begin & ~uintptr_t{1};
  const size_t first = (address - base) >> region->granule_shift;
  const size_t last = (address + bytes - 1 - base) >> region->granule_shift;
  for (size_t i = first; i <= last; ++i) {
    const Access access{i == first ? address : base + (i << region->granule_shift), *region, what,
                        pc};
    if (kind == Kind::kAtomic) check_initialised(access, region->cells[i]);
    if (write) {
      check_write(access, region->cells + i, kind);
    } else {
      check_read(access, region->cells + i);
    }
  }
}

bool written_in_this_launch(const void* pointer, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const Region* region = find_region(address);
  if (region == nullptr || region->shared) return false;
  const uintptr_t base = region->begin & ~uintptr_t{1};
  for (uintptr_t at = address; at < address + bytes; at += 1) {
    if (region->cells[(at - base) >> region->granule_shift].write.serial >= block().first_serial) {
      return true;
    }
  }
  return false;
}

}  // namespace simt
