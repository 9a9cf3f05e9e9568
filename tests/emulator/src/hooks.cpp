// Kernel files are compiled with -fsanitize=thread,alignment,bounds. These functions replace those
// of the sanitizers' libraries and report every access to the checker.
#include "runtime.h"

#if !defined(__SANITIZE_ADDRESS__)

namespace simt {
namespace {

[[gnu::always_inline]] inline void access(const void* address, size_t bytes, bool write,
                                          const void* return_address, bool may_be_unaligned) {
  if (current() == nullptr || Busy::now()) return;
  const uint32_t pc = offset_of_code(return_address);
  if (!may_be_unaligned && (reinterpret_cast<uintptr_t>(address) & (bytes - 1)) != 0) {
    fail("misaligned access of " + std::to_string(bytes) + " bytes at " + place(pc));
  }
  check_access(address, bytes, write, Kind::kPlain, pc);
}

// The first argument of every UBSan handler points to this.
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};

[[noreturn]] void report(const char* what, const void* data) {
  const auto* location = static_cast<const SourceLocation*>(data);
  fail(std::string(what) + " at " + place(Site{location->file, static_cast<int>(location->line)}));
}

}  // namespace
}  // namespace simt

#define SIMT_HOOK(name, bytes, write, unaligned)                                 \
  extern "C" void name(void* address) {                                          \
    simt::access(address, bytes, write, __builtin_return_address(0), unaligned); \
  }
SIMT_HOOK(__tsan_read1, 1, false, true)
SIMT_HOOK(__tsan_read2, 2, false, false)
SIMT_HOOK(__tsan_read4, 4, false, false)
SIMT_HOOK(__tsan_read8, 8, false, false)
SIMT_HOOK(__tsan_read16, 16, false, false)
SIMT_HOOK(__tsan_write1, 1, true, true)
SIMT_HOOK(__tsan_write2, 2, true, false)
SIMT_HOOK(__tsan_write4, 4, true, false)
SIMT_HOOK(__tsan_write8, 8, true, false)
SIMT_HOOK(__tsan_write16, 16, true, false)
SIMT_HOOK(__tsan_unaligned_read2, 2, false, true)
SIMT_HOOK(__tsan_unaligned_read4, 4, false, true)
SIMT_HOOK(__tsan_unaligned_read8, 8, false, true)
SIMT_HOOK(__tsan_unaligned_read16, 16, false, true)
SIMT_HOOK(__tsan_unaligned_write2, 2, true, true)
SIMT_HOOK(__tsan_unaligned_write4, 4, true, true)
SIMT_HOOK(__tsan_unaligned_write8, 8, true, true)
SIMT_HOOK(__tsan_unaligned_write16, 16, true, true)
SIMT_HOOK(__tsan_volatile_read1, 1, false, true)
SIMT_HOOK(__tsan_volatile_read2, 2, false, false)
SIMT_HOOK(__tsan_volatile_read4, 4, false, false)
SIMT_HOOK(__tsan_volatile_read8, 8, false, false)
SIMT_HOOK(__tsan_volatile_write1, 1, true, true)
SIMT_HOOK(__tsan_volatile_write2, 2, true, false)
SIMT_HOOK(__tsan_volatile_write4, 4, true, false)
SIMT_HOOK(__tsan_volatile_write8, 8, true, false)
#undef SIMT_HOOK

extern "C" void __tsan_read_range(void* address, unsigned long bytes) {
  if (bytes > 0) simt::access(address, bytes, false, __builtin_return_address(0), true);
}
extern "C" void __tsan_write_range(void* address, unsigned long bytes) {
  if (bytes > 0) simt::access(address, bytes, true, __builtin_return_address(0), true);
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}

extern "C" void __ubsan_handle_type_mismatch_v1(void* data, void*) {
  if (simt::current() != nullptr) simt::report("misaligned pointer", data);
}
extern "C" void __ubsan_handle_type_mismatch_v1_abort(void* data, void*) {
  if (simt::current() != nullptr) simt::report("misaligned pointer", data);
}
extern "C" void __ubsan_handle_out_of_bounds(void* data, void*) {
  if (simt::current() != nullptr) simt::report("array index out of bounds", data);
}
extern "C" void __ubsan_handle_out_of_bounds_abort(void* data, void*) {
  if (simt::current() != nullptr) simt::report("array index out of bounds", data);
}

#endif
