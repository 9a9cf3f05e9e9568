// The emulator's inside: fibers, the block that runs, memory regions with their shadow, clocks.
// Everything is one OS thread with global state.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulation.h"

namespace simt {

// Thrown to host code when a kernel breaks a rule.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Order { kAscending, kDescending, kRandom };

struct Options {
  Order order = Order::kAscending;
  uint64_t seed = 0;
  bool eager = false;       // asynchronous copies land at once, not at the last legal moment
  bool early_exit = false;  // threads may return while others still meet at block barriers
};
Options& options();

// Counters of the last launch, for tests.
struct Statistics {
  uint64_t blocks, switches, accesses, products, row_conflicts;
};
Statistics& statistics();

// ---- clocks (clocks.cpp)

// The epoch up to which each thread's accesses are known. After the threads come the block's
// mbarriers, whose epoch is the number of their phase: the writes of a TMA load are known to the
// threads that have waited for that phase.
using Epochs = std::vector<uint32_t>;
constexpr unsigned kMaxMbarriers = 64;

// A thread's knowledge of other threads: of its own block, and of blocks that it has acquired.
// Clocks are shared and therefore immutable.
struct Clock {
  std::shared_ptr<const Epochs> own;
  std::map<uint32_t, std::shared_ptr<const Epochs>> blocks;
};
using ClockPtr = std::shared_ptr<const Clock>;

struct Fiber;
void reset_clocks();
void join(const std::vector<Fiber*>& threads);  // of a barrier
void publish(const void* address);              // by the running thread's atomic
void forget_publishers();
void release(ClockPtr* to);          // by the running thread's arrival
void acquire(const ClockPtr& from);  // by the running thread's wait
void note_epoch(ClockPtr* clock, unsigned thread, uint32_t epoch);

// ---- fibers (fiber.cpp)

// kSpin waits for an mbarrier, kGroup for the other threads of the warpgroup.
enum class State { kReady, kBlock, kWarp, kSpin, kGroup, kDone };

struct AsyncCopy {
  void* to;
  unsigned char bytes[16];
  Site site;
  uint32_t pc;
};

struct Fiber {
  void* stack_pointer;
  unsigned thread;  // linear index in the block
  uint3 index;
  State state;
  const char* waits_for;  // the operation that it is in
  Site site;
  int predicate;
  uint32_t epoch;
  ClockPtr clock, released, pending;
  std::vector<AsyncCopy> copies;
  std::vector<size_t> groups;          // how many copies each committed group has
  std::vector<uint32_t> proxy_fences;  // epochs that a fence.proxy.async has closed
  bool registers_fenced;               // by wgmma.fence, since the last wait
  const void* mbarrier;                // that it spins on
  void* fake_stack;                    // AddressSanitizer's
};

Fiber* current();  // null on the host's stack
void make_fiber(unsigned thread);
void resume(Fiber& fiber);
void yield(State state, const char* waits_for, Site site);
[[noreturn]] void leave_fiber();
bool on_own_stack(uintptr_t address);
bool on_any_stack(uintptr_t address);
void abandon_fibers();

// While one is alive, the hooks ignore accesses: they are the runtime's own.
class Busy {
 public:
  Busy();
  ~Busy();
  static bool now();
};

// ---- the block that runs (launch.cpp)

struct Block {
  Call call;
  dim3 grid, size;
  uint3 index;
  size_t dynamic_bytes;
  uint32_t serial, first_serial;  // of this block, and of the first one of this launch
  uint32_t barriers;              // that the whole block has passed
  std::vector<Fiber> fibers;
};
Block& block();

// ---- collectives (collectives.cpp)

void clear_collectives();
std::string describe_incomplete_collective();  // empty if there is none
void meet(unsigned mask, const char* operation, Site site, void* arguments,
          void (*finish)(void* const* arguments, unsigned mask));

// ---- mbarriers and TMA (mbarrier.cpp)

void clear_mbarriers();
bool land_bulk_copy();                  // one of those in flight; returns whether there was one
std::string describe_spinner();         // a thread that waits for ever, or empty
std::string describe_unawaited_load();  // when all threads have ended

// ---- warpgroups (wgmma.cpp)

void clear_warpgroups();
std::string describe_incomplete_warpgroup();
std::string describe_unfinished_products(unsigned thread);

// ---- memory (memory.cpp)

struct Region {
  uintptr_t begin, end;
  std::string name;
  bool shared, read_only, initialised;
  int granule_shift;
  struct Cell* cells;
  size_t cell_bytes;
};
void add_buffer(const void* begin, size_t bytes, size_t element_bytes, bool read_only,
                bool initialised, const std::string& name);
void clear_buffers();
void add_region(Region region, size_t granule);
Region* find_region(uintptr_t address);
std::string describe_nearest(uintptr_t address);
void start_shared_block();
void free_shared();
bool in_call(uintptr_t address);
// The byte of shared memory with these low 18 bits of its address, as descriptors name it, or null.
unsigned char* shared_byte(uint32_t address);

// ---- the checker (checker.cpp)

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kChecked = false;
#else
constexpr bool kChecked = true;
#endif

// kBulk is a TMA load in flight, kLanded one that has landed.
enum class Kind : uint8_t { kPlain, kAtomic, kAsync, kBulk, kLanded, kMany };
void check_access(const void* address, size_t bytes, bool write, Kind kind, uint32_t pc);
// Checks the write of a TMA load in a phase of an mbarrier, whose epoch is at `mbarrier` in Epochs.
void check_bulk_write(void* to, size_t bytes, unsigned mbarrier, uint32_t phase, uint32_t pc);
void land_bulk_write(void* to, size_t bytes);
// Checks an operand that wgmma reads, issued by threads that all know `known`.
void check_operand(const void* from, size_t bytes, const Epochs& known, uint32_t pc);
bool written_in_this_launch(const void* address, size_t bytes);
void clear_read_sets();

// The bytes that wgmma reads from its issue to its end, from an operand's first to its last. A
// thread that writes there must know that every warp of the group has waited.
struct OperandRead {
  uintptr_t begin, end;
  unsigned first_thread;
  uint32_t pc;
  unsigned pending;              // products that have not been waited for
  std::vector<uint32_t> epochs;  // of the group's threads, when they waited for the last one
};
std::vector<OperandRead>& operand_reads();

// ---- reports (report.cpp)

uint32_t offset_of_code(const void* pc);
std::string place(uint32_t pc);
std::string place(Site site);
bool in_program(uintptr_t address);
std::string thread_name(unsigned thread);
std::string kernel_name();  // of the last launch
std::string in_kernel();    // the last lines of a message: block, thread, kernel
// Ends the launch with a message; on a fiber it never returns to the kernel.
[[noreturn]] void fail(const std::string& message);

}  // namespace simt
