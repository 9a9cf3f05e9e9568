// Checks every access of a kernel: bounds, initialisation, and whether it is ordered after the
// accesses that it conflicts with (tests/emulator/README.md has the rules).
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
std::vector<OperandRead> reads_of_operands;

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
  const bool by_thread = other.kind != Kind::kBulk && other.kind != Kind::kLanded;
  const std::string by = by_thread ? std::string(" by ") + (same ? "" : "another block's ") +
                                         "thread " + thread_name(other.thread)
                                   : "";
  fail("race on " + where(access) + ": " + access.what + " at " + place(access.pc) +
       " is not ordered after " + did + by + " at " + place(other.pc));
}

bool is_ordered(const Record& record, bool shared) {
  const Block& running = block();
  const Fiber& self = *current();
  if (record.serial < running.first_serial) return true;
  if (record.serial == running.serial) {
    return record.thread == self.thread || (*self.clock->own)[record.thread] >= record.epoch;
  }
  if (shared) return true;
  // A thread that has acquired a fence through an atomic also knows that atomic.
  const auto known = self.clock->blocks.find(record.serial);
  return known != self.clock->blocks.end() &&
         (*known->second)[record.thread] >= record.epoch - record.since_fence;
}

const char* name_of(Kind kind) {
  return kind == Kind::kAtomic                          ? "an atomic"
         : kind == Kind::kAsync                         ? "a cp.async that was not waited for"
         : kind == Kind::kBulk || kind == Kind::kLanded ? "a TMA load that was not waited for"
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

bool is_under_way(const Record& record) {
  return (record.kind == Kind::kAsync || record.kind == Kind::kBulk) &&
         record.serial == block().serial;
}

// The tensor cores and TMA access memory through another proxy than threads: they see a thread's
// write only after the thread has fenced it, and the fence must be known.
void check_proxy(const Access& access, const Record& write, const Epochs& known) {
  if (write.serial != block().serial || write.kind == Kind::kLanded) return;
  const std::vector<uint32_t>& fences = block().fibers[write.thread].proxy_fences;
  const auto fence = std::lower_bound(fences.begin(), fences.end(), write.epoch);
  if (fence != fences.end() && *fence < known[write.thread]) return;
  fail("race on " + where(access) + ": " + access.what + " at " + place(access.pc) +
       " without fence.proxy.async after the write by thread " + thread_name(write.thread) +
       " at " + place(write.pc));
}

// A warp has waited if an access that one of its threads made after the wait began is known.
bool have_waited(const OperandRead& read) {
  if (read.pending > 0) return false;
  const Fiber& self = *current();
  for (unsigned warp = 0; warp < 4; ++warp) {
    bool known = false;
    for (unsigned lane = 0; lane < 32; ++lane) {
      const unsigned thread = read.first_thread + warp * 32 + lane;
      const uint32_t epoch = thread == self.thread ? self.epoch : (*self.clock->own)[thread];
      known |= epoch >= read.epochs[warp * 32 + lane];
    }
    if (!known) return false;
  }
  return true;
}

void check_operand_reads(const Access& access, size_t bytes) {
  for (const OperandRead& read : reads_of_operands) {
    if (access.address + bytes <= read.begin || access.address >= read.end) continue;
    if (have_waited(read)) continue;
    fail("race on " + where(access) + ": " + access.what + " at " + place(access.pc) +
         " is not ordered after the end of wgmma, which reads there, at " + place(read.pc));
  }
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
  if (!is_ordered(cell->write, shared) || is_under_way(cell->write)) {
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

void check_write(const Access& access, Cell* cell, Kind kind, const Record& record) {
  const bool shared = access.region.shared;
  const bool both_atomic = kind == Kind::kAtomic && cell->write.kind == Kind::kAtomic;
  const bool after_write = is_ordered(cell->write, shared);
  const bool pending = is_under_way(cell->write) && cell->write.thread != current()->thread;
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
  cell->write = record;
  cell->readers[0] = cell->readers[1] = {};
}

// Memory outside all regions: a thread's own stack, the launch's arguments, constants.
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

void clear_read_sets() {
  read_sets.clear();
  reads_of_operands.clear();
}

std::vector<OperandRead>& operand_reads() { return reads_of_operands; }

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
  if (write && region->shared && !reads_of_operands.empty()) {
    check_operand_reads({address, *region, what, pc}, bytes);
  }
  for (size_t i = first; i <= last; ++i) {
    const Access access{i == first ? address : base + (i << region->granule_shift), *region, what,
                        pc};
    if (kind == Kind::kAtomic) check_initialised(access, region->cells[i]);
    if (write) {
      check_write(access, region->cells + i, kind, record_of(kind, pc));
    } else {
      check_read(access, region->cells + i);
    }
  }
}

namespace {

// Calls f(access, cell) for every granule of the bytes, which the caller has checked to lie in one
// region.
template <typename Visit>
void for_each_cell(uintptr_t address, size_t bytes, const char* what, uint32_t pc, Visit visit) {
  const Region& region = *find_region(address);
  const uintptr_t base = region.begin & ~uintptr_t{1};
  const size_t end = (address + bytes - 1 - base) >> region.granule_shift;
  for (size_t i = (address - base) >> region.granule_shift; i <= end; ++i) {
    visit(Access{base + (i << region.granule_shift), region, what, pc}, region.cells[i]);
  }
}

}  // namespace

void check_bulk_write(void* to, size_t bytes, unsigned mbarrier, uint32_t phase, uint32_t pc) {
  const auto address = reinterpret_cast<uintptr_t>(to);
  const auto thread = static_cast<uint16_t>(block().fibers.size() + mbarrier);
  const Record record{block().serial, phase, pc, thread, Kind::kBulk, 0};
  Epochs known = *current()->clock->own;
  known[current()->thread] = current()->epoch;
  check_operand_reads({address, *find_region(address), "TMA load", pc}, bytes);
  for_each_cell(address, bytes, "TMA load", pc, [&](const Access& access, Cell& cell) {
    const Record before = cell.write;
    check_write(access, &cell, Kind::kBulk, record);
    check_proxy(access, before, known);
  });
}

void land_bulk_write(void* to, size_t bytes) {
  for_each_cell(reinterpret_cast<uintptr_t>(to), bytes, "", 0, [](const Access&, Cell& cell) {
    if (cell.write.kind == Kind::kBulk) cell.write.kind = Kind::kLanded;
  });
}

void check_operand(const void* from, size_t bytes, const Epochs& known, uint32_t pc) {
  for_each_cell(reinterpret_cast<uintptr_t>(from), bytes, "wgmma", pc,
                [&](const Access& access, Cell& cell) {
                  check_initialised(access, cell);
                  if (is_under_way(cell.write) || known[cell.write.thread] < cell.write.epoch) {
                    report_race(access, cell.write, name_of(cell.write.kind));
                  }
                  check_proxy(access, cell.write, known);
                });
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
