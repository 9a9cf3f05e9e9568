// Every CUDA thread is a fiber: a stack of its own, and a switch that saves what the ABI requires.
#include <sys/mman.h>
#include <unistd.h>

#include "runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__x86_64__) && !defined(SIMT_UCONTEXT)
#define SIMT_OWN_SWITCH
#else
#include <ucontext.h>
#endif

namespace simt {
namespace {

constexpr size_t kSlot = 128 << 10;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kPage = 4096;

Fiber* running = nullptr;
int busy = 0;
unsigned char* stacks = nullptr;
void* host_stack_pointer = nullptr;

#if defined(__SANITIZE_ADDRESS__)
void* host_fake_stack = nullptr;
const void* host_bottom = nullptr;
size_t host_size = 0;
#endif

unsigned char* slot(unsigned thread) { return stacks + thread * kSlot; }

void reserve_stacks() {
  if (stacks != nullptr) return;
  void* memory = mmap(nullptr, kMaxThreads * kSlot, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw Error("no address space for the threads' stacks");
  stacks = static_cast<unsigned char*>(memory);
  for (unsigned i = 0; i < kMaxThreads; ++i) mprotect(slot(i), kPage, PROT_NONE);
}

[[noreturn]] void enter_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &host_bottom, &host_size);
#endif
  const Call call = block().call;
  call.run(call.arguments);
  if (!running->copies.empty()) {
    fail("the thread ends before its cp.async has been waited for, issued at " +
         place(running->copies.front().site));
  }
  const std::string products = describe_unfinished_products(running->thread);
  if (!products.empty()) fail(products);
  leave_fiber();
}

}  // namespace

#ifdef SIMT_OWN_SWITCH

// Saves the callee-saved registers and the stack pointer, and loads those of another stack.
extern "C" void simt_switch(void** save, void* load);
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");

namespace {

void* first_stack_pointer(unsigned thread) {
  // Equal offsets in slots of a power of two would share sets of the cache.
  unsigned char* top = slot(thread) + kSlot - (thread % 29) * 576;
  void** stack = reinterpret_cast<void**>(top);
  *--stack = nullptr;  // enter_fiber's return address, which also aligns its frame
  *--stack = reinterpret_cast<void*>(&enter_fiber);
  for (int i = 0; i < 6; ++i) *--stack = nullptr;
  return stack;
}

void exchange(void** save, void* load) { simt_switch(save, load); }

}  // namespace

#else

namespace {

ucontext_t contexts[kMaxThreads + 1];  // the last one is the host's

void* first_stack_pointer(unsigned thread) {
  ucontext_t& context = contexts[thread];
  getcontext(&context);
  context.uc_stack.ss_sp = slot(thread) + kPage;
  context.uc_stack.ss_size = kSlot - kPage;
  context.uc_link = nullptr;
  makecontext(&context, enter_fiber, 0);
  return &context;
}

void exchange(void** save, void* load) {
  ucontext_t& from = contexts[save == &host_stack_pointer ? kMaxThreads : running->thread];
  *save = &from;
  swapcontext(&from, static_cast<ucontext_t*>(load));
}

}  // namespace

#endif

namespace {

void switch_to_host([[maybe_unused]] bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
  Fiber& self = *running;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &self.fake_stack, host_bottom, host_size);
  exchange(&self.stack_pointer, host_stack_pointer);
  __sanitizer_finish_switch_fiber(self.fake_stack, &host_bottom, &host_size);
#else
  exchange(&running->stack_pointer, host_stack_pointer);
#endif
}

}  // namespace

Fiber* current() { return running; }

Busy::Busy() { ++busy; }
Busy::~Busy() { --busy; }
bool Busy::now() { return busy != 0; }

void make_fiber(unsigned thread) {
  reserve_stacks();
  Fiber& fiber = block().fibers[thread];
  fiber = {};
  const dim3 size = block().size;
  fiber.thread = thread;
  fiber.index = {thread % size.x, thread / size.x % size.y, thread / (size.x * size.y)};
  fiber.state = State::kReady;
  fiber.stack_pointer = first_stack_pointer(thread);
}

void resume(Fiber& fiber) {
  ++statistics().switches;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&host_fake_stack, slot(fiber.thread) + kPage, kSlot - kPage);
#endif
  running = &fiber;
  exchange(&host_stack_pointer, fiber.stack_pointer);
  running = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(host_fake_stack, nullptr, nullptr);
#endif
}

void yield(State state, const char* waits_for, Site site) {
  Fiber& self = *running;
  self.state = state;
  self.waits_for = waits_for;
  self.site = site;
  const int depth = busy;
  busy = 0;
  switch_to_host(false);
  busy = depth;
}

[[noreturn]] void leave_fiber() {
  running->state = State::kDone;
  busy = 0;
  switch_to_host(true);
  __builtin_unreachable();
}

bool on_own_stack(uintptr_t address) {
  const auto begin = reinterpret_cast<uintptr_t>(slot(running->thread));
  return address - begin < kSlot;
}

bool on_any_stack(uintptr_t address) {
  return address - reinterpret_cast<uintptr_t>(stacks) < kMaxThreads * kSlot;
}

void abandon_fibers() {
#if defined(__SANITIZE_ADDRESS__)
  for (unsigned i = 0; i < block().fibers.size(); ++i) {
    __asan_unpoison_memory_region(slot(i) + kPage, kSlot - kPage);
  }
#endif
}

}  // namespace simt
