// A grid: its blocks one after another, and in a block the threads in the order that the options
// say.
#include <algorithm>
#include <numeric>

#include "runtime.h"

namespace simt {
namespace {

constexpr size_t kSharedLimit = 232448;

Block the_block;
uint32_t last_serial = 0;
uint64_t random_state = 0;

uint32_t random_number() {  // splitmix64
  uint64_t z = random_state += 0x9E3779B97F4A7C15;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return static_cast<uint32_t>(z >> 32);
}

// 0..count-1 in the order that the options say.
void order_of(std::vector<unsigned>* order, unsigned count) {
  order->resize(count);
  std::iota(order->begin(), order->end(), 0u);
  if (options().order == Order::kDescending) std::reverse(order->begin(), order->end());
  if (options().order != Order::kRandom) return;
  for (unsigned i = count; i > 1; --i) std::swap((*order)[i - 1], (*order)[random_number() % i]);
}

std::string failure;

// One sweep: runs the lanes of a warp until none can run, then the next warp, so that the warps
// drift as far apart as barriers allow. Returns whether any thread ran.
bool sweep(std::vector<unsigned>* warps, std::vector<unsigned>* lanes) {
  const unsigned threads = static_cast<unsigned>(the_block.fibers.size());
  bool ran = false;
  order_of(warps, (threads + 31) / 32);
  for (unsigned warp : *warps) {
    order_of(lanes, std::min(32u, threads - warp * 32));
    for (bool again = true; again;) {
      again = false;
      for (unsigned lane : *lanes) {
        Fiber& fiber = the_block.fibers[warp * 32 + lane];
        if (fiber.state != State::kReady) continue;
        resume(fiber);
        if (!failure.empty()) return true;
        again = ran = true;
      }
      if (options().order == Order::kRandom && random_number() % 2 == 0) break;
    }
  }
  return ran;
}

void open_block_barrier(const std::vector<Fiber*>& waiting) {
  int count = 0, all = 1;
  for (const Fiber* fiber : waiting) {
    count += fiber->predicate != 0;
    all &= fiber->predicate != 0;
  }
  const std::string operation = waiting.front()->waits_for;
  const int result = operation == "__syncthreads_count" ? count
                     : operation == "__syncthreads_and" ? all
                                                        : count != 0;
  join(waiting);
  ++the_block.barriers;
  std::vector<OperandRead>& reads = operand_reads();
  reads.erase(std::remove_if(reads.begin(), reads.end(),
                             [](const OperandRead& read) { return read.pending == 0; }),
              reads.end());
  for (Fiber* fiber : waiting) {
    fiber->predicate = result;
    fiber->state = State::kReady;
  }
}

// No thread can run: lands a TMA load, or opens a barrier that all threads have reached; everything
// else is an error. Returns whether the block goes on.
bool settle() {
  if (land_bulk_copy()) return true;
  for (const auto describe :
       {describe_incomplete_collective, describe_incomplete_warpgroup, describe_spinner}) {
    const std::string reason = describe();
    if (!reason.empty()) fail(reason);
  }
  std::vector<Fiber*> waiting;
  const Fiber* done = nullptr;
  for (Fiber& fiber : the_block.fibers) {
    if (fiber.state == State::kDone) {
      done = &fiber;
    } else {
      waiting.push_back(&fiber);
    }
  }
  if (waiting.empty()) {
    const std::string load = describe_unawaited_load();
    if (!load.empty()) fail(load);
    return false;
  }
  const Fiber& first = *waiting.front();
  for (const Fiber* fiber : waiting) {
    if (fiber->site.line == first.site.line && std::string(fiber->site.file) == first.site.file) {
      continue;
    }
    fail(std::string("divergent barrier: ") + first.waits_for + " at " + place(first.site) +
         " by thread " + thread_name(first.thread) + ", " + fiber->waits_for + " at " +
         place(fiber->site) + " by thread " + thread_name(fiber->thread));
  }
  if (done != nullptr && !options().early_exit) {
    fail(std::string("divergent barrier: ") + first.waits_for + " at " + place(first.site) +
         " by thread " + thread_name(first.thread) + ", but thread " + thread_name(done->thread) +
         " has exited");
  }
  open_block_barrier(waiting);
  return true;
}

void run_block() {
  const unsigned threads = the_block.size.x * the_block.size.y * the_block.size.z;
  the_block.serial = ++last_serial;
  the_block.barriers = 0;
  the_block.fibers.resize(threads);
  ++statistics().blocks;
  clear_collectives();
  clear_read_sets();
  clear_mbarriers();
  clear_warpgroups();
  start_shared_block();
  for (unsigned i = 0; i < threads; ++i) make_fiber(i);
  reset_clocks();
  std::vector<unsigned> warps, lanes;
  do {
    while (sweep(&warps, &lanes) && failure.empty()) {
    }
    if (!failure.empty()) throw Error(failure);
  } while (settle());
}

struct LaunchScope {
  LaunchScope() { failure.clear(); }
  ~LaunchScope() {
    abandon_fibers();
    free_shared();
    forget_publishers();
    the_block.fibers.clear();
  }
};

void check_configuration(dim3 grid, dim3 size, size_t shared_bytes) {
  const auto refuse = [](const std::string& what) { throw Error("launch: " + what); };
  const uint64_t threads = uint64_t{size.x} * size.y * size.z;
  if (threads == 0 || threads > 1024) refuse(std::to_string(threads) + " threads in a block");
  if (size.z > 64) refuse("a block of depth " + std::to_string(size.z));
  if (grid.x == 0 || grid.x > 0x7fffffff) refuse(std::to_string(grid.x) + " blocks along x");
  if (grid.y == 0 || grid.y > 65535) refuse(std::to_string(grid.y) + " blocks along y");
  if (grid.z == 0 || grid.z > 65535) refuse(std::to_string(grid.z) + " blocks along z");
  if (shared_bytes > kSharedLimit) {
    refuse(std::to_string(shared_bytes) + " bytes of dynamic shared memory");
  }
}

}  // namespace

Block& block() { return the_block; }

Options& options() {
  static Options the_options;
  return the_options;
}

Statistics& statistics() {
  static Statistics the_statistics;
  return the_statistics;
}

cudaError_t run_grid(const Call& call, dim3 grid, dim3 size, size_t shared_bytes) {
  check_configuration(grid, size, shared_bytes);
  the_block.call = call;
  the_block.grid = grid;
  the_block.size = size;
  the_block.dynamic_bytes = shared_bytes;
  the_block.first_serial = last_serial + 1;
  statistics() = {};
  random_state = options().seed;
  const LaunchScope scope;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  std::vector<unsigned> order;
  order_of(&order, static_cast<unsigned>(blocks));
  for (unsigned k : order) {
    the_block.index = {k % grid.x, k / grid.x % grid.y, k / grid.x / grid.y};
    run_block();
  }
  return cudaSuccess;
}

[[noreturn]] void fail(const std::string& message) {
  const std::string text = message + in_kernel();
  if (current() == nullptr) throw Error(text);
  failure = text;
  leave_fiber();
}

uint3 thread_index() { return current()->index; }
uint3 block_index() { return the_block.index; }
dim3 block_size() { return the_block.size; }
dim3 grid_size() { return the_block.grid; }

int block_barrier(Barrier kind, int predicate, Site site) {
  const Busy busy;
  static const char* const names[] = {"__syncthreads", "__syncthreads_count", "__syncthreads_and",
                                      "__syncthreads_or"};
  current()->predicate = predicate;
  yield(State::kBlock, names[static_cast<int>(kind)], site);
  return current()->predicate;
}

}  // namespace simt
