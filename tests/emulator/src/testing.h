// For test harnesses: runs host code that launches emulated kernels, and returns the checker's
// errors. Under nvcc the same functions run the kernels on a GPU, unchecked.
#pragma once

#define SIMT_EXPORT extern "C" __attribute__((visibility("default")))

#ifdef SIMT_EMULATED

#include "runtime.h"

namespace simt {

void keep_error(const std::string& text);

// Runs `body` and returns 0, or 1 if a kernel broke a rule; simt_error() then has the message.
template <typename Body>
int guarded(Body body) {
  try {
    if (body() == cudaSuccess) return 0;
    keep_error("the launcher returned an error");
  } catch (const Error& error) {
    keep_error(error.what());
  }
  return 1;
}

}  // namespace simt

// The C interface, for ctypes.
SIMT_EXPORT const char* simt_error();
SIMT_EXPORT void simt_set_options(int order, uint64_t seed, int eager, int early_exit);
SIMT_EXPORT int simt_add_buffer(const char* name, const void* begin, size_t bytes,
                                size_t element_bytes, int read_only, int initialised);
SIMT_EXPORT void simt_clear_buffers();
SIMT_EXPORT const char* simt_kernel();  // of the last launch
// Counters of the last launch: blocks, switches, checked accesses, matrix products, row conflicts.
SIMT_EXPORT void simt_statistics(uint64_t* numbers);

#else

#include "types.h"

namespace simt {

template <typename Body>
int guarded(Body body) {
  return body() == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess ? 0 : 1;
}

}  // namespace simt

#endif
