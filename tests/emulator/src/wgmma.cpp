// wgmma: four warps issue a product of operands in shared memory, and may use its sums again after
// a wait. The product is computed at the wait, the last legal moment, and the sums are NaN until
// then; with options().eager it is computed when it is issued.
#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <string>

#include "hopper.h"
#include "runtime.h"

namespace simt {
namespace {

constexpr unsigned kThreads = 128, kRows = 64, kMaxColumns = 128, kDepth = 16;

using Sums = std::vector<std::array<float, kMaxColumns / 2>>;  // by thread

struct Request {
  float* sums;
  unsigned columns;
  uint64_t a, b;
  bool b_by_k;
  float (*widen)(uint16_t);
  uint32_t pc;

  unsigned count() const { return columns / 2; }  // sums of a thread
};

struct Pending {
  Request request;
  std::array<float*, kThreads> sums;
  Site site;
  std::vector<std::pair<uintptr_t, uintptr_t>> reads;
};

struct Warpgroup {
  unsigned first = 0, arrived = 0;
  const char* operation = nullptr;
  Site site = {};
  const Request* requests[kThreads] = {};
  std::vector<Pending> issued;              // since the last commit
  std::deque<std::vector<Pending>> groups;  // committed, oldest first
  std::map<float*, Sums> saved;             // of pending products, by the first thread's sums
  // The epochs that all of its threads know, and the clocks they come from.
  Epochs known;
  std::vector<ClockPtr> clocks;
};

std::vector<Warpgroup> warpgroups;

bool same_place(Site a, Site b) {
  return a.line == b.line && std::string(a.file) == std::string(b.file);
}

Fiber& thread_of(const Warpgroup& group, unsigned i) { return block().fibers[group.first + i]; }

// The last thread to arrive runs finish(group).
template <typename Finish>
void meet_group(const char* operation, Site site, const Request* request, Finish finish) {
  Fiber& self = *current();
  self.site = site;
  const unsigned index = self.thread / kThreads;
  if ((index + 1) * kThreads > block().fibers.size()) {
    fail(std::string(operation) + " by a warpgroup of fewer than 128 threads at " + place(site));
  }
  Warpgroup& group = warpgroups[index];
  if (group.arrived == 0) {
    group.operation = operation;
    group.site = site;
  } else if (std::string(group.operation) != operation || !same_place(group.site, site)) {
    fail("warpgroup diverged: thread " + thread_name(self.thread) + " comes to " + operation +
         " at " + place(site) + ", others wait in " + group.operation + " at " + place(group.site));
  }
  group.requests[self.thread - group.first] = request;
  if (++group.arrived != kThreads) {
    yield(State::kGroup, operation, site);
    return;
  }
  finish(group);
  group.arrived = 0;
  for (unsigned i = 0; i < kThreads; ++i) {
    Fiber& fiber = thread_of(group, i);
    if (&fiber != &self) fiber.state = State::kReady;
  }
}

// The bytes of an operand: element (row, k), as matrix_descriptor defines them.
class Operand {
 public:
  Operand(uint64_t descriptor, unsigned rows, bool by_k, Site site)
      : rows_(rows),
        start_(static_cast<uint32_t>(descriptor & 0x3fff) << 4),
        depth_step_(static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4),
        row_step_(static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4),
        swizzled_(descriptor >> 62 == 1),
        by_k_(by_k) {
    if (descriptor >> 62 > 1 || (descriptor >> 49 & 7) != 0) {
      fail("wgmma: a descriptor that the emulator does not know, at " + place(site));
    }
    if (by_k && !swizzled_) {
      fail("wgmma: an operand by k without a swizzle is not emulated, at " + place(site));
    }
  }

  // Eight elements: rows row..row + 7 of one k, or k..k + 7 of one row.
  const unsigned char* run(unsigned row, unsigned k, Site site) const {
    const unsigned address =
        by_k_ ? start_ + row / 64 * depth_step_ + k / 8 * row_step_ + k % 8 * 128 + row % 64 * 2
        : swizzled_ ? start_ + row / 8 * row_step_ + row % 8 * 128 + k * 2
                    : start_ + row / 8 * row_step_ + k / 8 * depth_step_ + row % 8 * 16;
    const unsigned char* byte = shared_byte(swizzled_ ? address ^ (address >> 3 & 0x70) : address);
    if (byte == nullptr) fail("wgmma: an operand outside shared memory, at " + place(site));
    return byte;
  }

  // Calls f(row, k, run) for all of them.
  template <typename Visit>
  void for_each_run(Site site, Visit visit) const {
    for (unsigned row = 0; row < rows_; row += by_k_ ? 8 : 1) {
      for (unsigned k = 0; k < kDepth; k += by_k_ ? 1 : 8) visit(row, k, run(row, k, site));
    }
  }

 private:
  unsigned rows_, start_, depth_step_, row_step_;
  bool swizzled_, by_k_;
};

Operand a_of(const Pending& product) {
  return Operand(product.request.a, kRows, false, product.site);
}
Operand b_of(const Pending& product) {
  const Request& request = product.request;
  return Operand(request.b, request.columns, request.b_by_k, product.site);
}

const Epochs& known_to_all(Warpgroup* group) {
  bool same = group->clocks.size() == kThreads;
  for (unsigned i = 0; same && i < kThreads; ++i) {
    same = thread_of(*group, i).clock == group->clocks[i];
  }
  if (same) return group->known;
  group->clocks.clear();
  const Epochs* last = nullptr;
  for (unsigned i = 0; i < kThreads; ++i) {
    const ClockPtr& clock = thread_of(*group, i).clock;
    group->clocks.push_back(clock);
    if (i == 0) group->known = *clock->own;
    if (clock->own.get() == last) continue;
    last = clock->own.get();
    for (size_t t = 0; t < last->size(); ++t) {
      group->known[t] = std::min(group->known[t], (*last)[t]);
    }
  }
  return group->known;
}

void note_read(const Warpgroup& group, uintptr_t begin, uintptr_t end, uint32_t pc) {
  std::vector<OperandRead>& reads = operand_reads();
  for (OperandRead& read : reads) {  // a newer one of the same group tells more
    if (read.begin == begin && read.end == end && read.first_thread == group.first) {
      ++read.pending;
      read.pc = pc;
      return;
    }
  }
  reads.push_back({begin, end, group.first, pc, 1, {}});
}

void check_operands(Warpgroup* group, Pending* given) {
  if (!kChecked) return;
  const Epochs& known = known_to_all(group);
  const Pending& product = *given;
  const Request& request = product.request;
  for (const bool is_a : {true, false}) {
    const Operand operand = is_a ? a_of(product) : b_of(product);
    uintptr_t begin = UINTPTR_MAX, end = 0;
    operand.for_each_run(product.site, [&](unsigned, unsigned, const unsigned char* run) {
      check_operand(run, 16, known, request.pc);
      begin = std::min(begin, reinterpret_cast<uintptr_t>(run));
      end = std::max(end, reinterpret_cast<uintptr_t>(run) + 16);
    });
    note_read(*group, begin, end, request.pc);
    given->reads.emplace_back(begin, end);
  }
}

float element(const unsigned char* run, unsigned i, float (*widen)(uint16_t)) {
  uint16_t bits;
  std::memcpy(&bits, run + 2 * i, sizeof bits);
  return widen(bits);
}

// Adds to sums_of(thread).
template <typename SumsOf>
void multiply(const Pending& product, SumsOf sums_of) {
  ++statistics().products;
  static float a[kRows][kDepth], b[kDepth][kMaxColumns], sum[kRows][kMaxColumns];
  const Request& request = product.request;
  a_of(product).for_each_run(product.site, [&](unsigned row, unsigned k, const unsigned char* run) {
    for (unsigned i = 0; i < 8; ++i) a[row][k + i] = element(run, i, request.widen);
  });
  b_of(product).for_each_run(product.site, [&](unsigned row, unsigned k, const unsigned char* run) {
    for (unsigned i = 0; i < 8; ++i) {
      const float value = element(run, i, request.widen);
      (request.b_by_k ? b[k][row + i] : b[k + i][row]) = value;
    }
  });
  const auto place_of = [](unsigned thread, unsigned i) -> float& {
    return sum[16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2 % 2)]
              [8 * (i / 4) + 2 * (thread % 4) + i % 2];
  };
  for (unsigned t = 0; t < kThreads; ++t) {
    for (unsigned i = 0; i < request.count(); ++i) place_of(t, i) = sums_of(t)[i];
  }
  for (unsigned row = 0; row < kRows; ++row) {
    for (unsigned k = 0; k < kDepth; ++k) {
      for (unsigned c = 0; c < request.columns; ++c) sum[row][c] += a[row][k] * b[k][c];
    }
  }
  for (unsigned t = 0; t < kThreads; ++t) {
    for (unsigned i = 0; i < request.count(); ++i) sums_of(t)[i] = place_of(t, i);
  }
}

void issue(Warpgroup* group) {
  const Site site = current()->site;
  Pending product{*group->requests[0], {}, site, {}};
  for (unsigned i = 0; i < kThreads; ++i) {
    const Request& request = *group->requests[i];
    if (request.a != product.request.a || request.b != product.request.b) {
      fail("wgmma: the threads of a warpgroup name different operands, at " + place(site));
    }
    if (!thread_of(*group, i).registers_fenced) {
      fail("wgmma: no wgmma_fence since the last wait, at " + place(site));
    }
    product.sums[i] = request.sums;
  }
  check_operands(group, &product);
  if (options().eager) {
    multiply(product, [&](unsigned t) { return product.sums[t]; });
  } else if (group->saved.find(product.sums[0]) == group->saved.end()) {
    Sums& saved = group->saved[product.sums[0]];
    saved.resize(kThreads);
    for (unsigned t = 0; t < kThreads; ++t) {
      std::copy_n(product.sums[t], product.request.count(), saved[t].begin());
      std::memset(product.sums[t], 0xff, product.request.count() * sizeof(float));
    }
  }
  group->issued.push_back(product);
}

bool is_pending(const Warpgroup& group, const float* sums) {
  for (const auto& products : group.groups) {
    for (const Pending& product : products) {
      if (product.sums[0] == sums) return true;
    }
  }
  return false;
}

void end_reads(const Warpgroup& group, const Pending& product) {
  for (OperandRead& read : operand_reads()) {
    const bool ours = read.first_thread == group.first &&
                      std::find(product.reads.begin(), product.reads.end(),
                                std::pair{read.begin, read.end}) != product.reads.end();
    if (!ours || --read.pending > 0) continue;
    read.epochs.clear();
    for (unsigned i = 0; i < kThreads; ++i) read.epochs.push_back(thread_of(group, i).epoch);
  }
}

void finish_oldest(Warpgroup* group) {
  const std::vector<Pending> products = std::move(group->groups.front());
  group->groups.pop_front();
  for (const Pending& product : products) end_reads(*group, product);
  if (options().eager) return;
  for (const Pending& product : products) {
    Sums& saved = group->saved.at(product.sums[0]);
    multiply(product, [&](unsigned t) { return saved[t].data(); });
  }
  for (const Pending& product : products) {
    const auto saved = group->saved.find(product.sums[0]);
    if (saved == group->saved.end() || is_pending(*group, product.sums[0])) continue;
    for (unsigned t = 0; t < kThreads; ++t) {
      std::copy_n(saved->second[t].begin(), product.request.count(), product.sums[t]);
    }
    group->saved.erase(saved);
  }
}

}  // namespace

void clear_warpgroups() {
  warpgroups.assign((block().fibers.size() + kThreads - 1) / kThreads, {});
  for (size_t i = 0; i < warpgroups.size(); ++i) {
    warpgroups[i].first = static_cast<unsigned>(i) * kThreads;
  }
}

std::string describe_incomplete_warpgroup() {
  for (const Warpgroup& group : warpgroups) {
    if (group.arrived == 0) continue;
    for (unsigned i = 0; i < kThreads; ++i) {
      const Fiber& absent = thread_of(group, i);
      if (absent.state == State::kGroup) continue;
      const std::string reason =
          absent.state == State::kDone
              ? " has exited"
              : std::string(" waits in ") + absent.waits_for + " at " + place(absent.site);
      return std::string(group.operation) + " at " + place(group.site) +
             " never completes: thread " + thread_name(absent.thread) + reason;
    }
  }
  return {};
}

std::string describe_unfinished_products(unsigned thread) {
  const Warpgroup& group = warpgroups[thread / kThreads];
  const Pending* first = group.issued.empty() ? nullptr : &group.issued.front();
  for (const auto& products : group.groups) {
    if (first == nullptr && !products.empty()) first = &products.front();
  }
  if (first == nullptr) return {};
  return "the thread ends before its wgmma has been waited for, issued at " + place(first->site);
}

uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(pointer) & 0x3ffff);
}

void fence_registers(Site site) {
  const Busy busy;
  meet_group("wgmma_fence", site, nullptr, [](Warpgroup& group) {
    for (unsigned i = 0; i < kThreads; ++i) thread_of(group, i).registers_fenced = true;
  });
}

__attribute__((noinline)) void wgmma(float* acc, unsigned columns, uint64_t a, uint64_t b,
                                     bool b_by_k, float (*widen)(uint16_t), Site site) {
  const Busy busy;
  const Request request{
      acc, columns, a, b, b_by_k, widen, offset_of_code(__builtin_return_address(0))};
  meet_group("wgmma", site, &request, [](Warpgroup& group) { issue(&group); });
}

void wgmma_commit(Site site) {
  const Busy busy;
  meet_group("wgmma_commit", site, nullptr, [](Warpgroup& group) {
    group.groups.push_back(std::move(group.issued));
    group.issued.clear();
  });
}

void wgmma_wait_groups(int newest, Site site) {
  const Busy busy;
  meet_group("wgmma_wait", site, nullptr, [newest](Warpgroup& group) {
    while (group.groups.size() > static_cast<size_t>(newest)) finish_oldest(&group);
    for (unsigned i = 0; i < kThreads; ++i) thread_of(group, i).registers_fenced = false;
  });
}

}  // namespace simt
