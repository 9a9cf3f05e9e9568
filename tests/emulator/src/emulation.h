// CUDA's names in the emulated build, implemented by the runtime of runtime.h. Every function
// records its call site for messages.
#pragma once

#include <math.h>

#include <algorithm>

#include <tuple>
#include <utility>

#include "emulated_types.h"

namespace simt {

struct Site {
  const char* file;
  int line;
};

// Inlined, so that a return address lies in the kernel and gives its line.
#define SIMT_INLINE __attribute__((always_inline)) inline
#define SIMT_SITE simt::Site site = {__builtin_FILE(), __builtin_LINE()}

uint3 thread_index();
uint3 block_index();
dim3 block_size();
dim3 grid_size();

enum class Barrier { kPlain, kCount, kAnd, kOr };
int block_barrier(Barrier kind, int predicate, Site site);

enum class Shuffle { kIndex, kUp, kDown, kXor };
uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t bits, int lane, int width, Site site);
unsigned vote(unsigned mask, bool predicate, Site site);
unsigned reduce_add(unsigned mask, unsigned value, Site site);
void warp_barrier(unsigned mask, Site site);

void fence();
void check_atomic(void* address, size_t bytes, const void* pc, Site site);
void check_read_only(const void* address, size_t bytes, Site site);

void* shared_variable(const char* name, size_t bytes, size_t element_bytes, const char* function,
                      Site site);
void* dynamic_shared(Site site);

void cp_async_16(void* shared, const void* global, bool valid = true, SIMT_SITE);
void cp_async_commit();
void cp_async_wait_groups(int newest, Site site);
template <int kNewest>
void cp_async_wait(SIMT_SITE) {
  cp_async_wait_groups(kNewest, site);
}

void ldmatrix(uint32_t* to, const void* row, bool transposed, Site site);
SIMT_INLINE void ldmatrix_x4(uint32_t (&to)[4], const void* row, SIMT_SITE) {
  ldmatrix(to, row, false, site);
}
SIMT_INLINE void ldmatrix_x4_trans(uint32_t (&to)[4], const void* row, SIMT_SITE) {
  ldmatrix(to, row, true, site);
}

void mma(float* acc, const uint32_t* a, const uint32_t* b, float (*widen)(uint16_t), Site site);
inline void mma_m16n8k16(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         __nv_bfloat16, SIMT_SITE) {
  mma(acc, a, b, [](uint16_t bits) { return __bfloat162float({bits}); }, site);
}
inline void mma_m16n8k16(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half,
                         SIMT_SITE) {
  mma(acc, a, b, [](uint16_t bits) { return __half2float({bits}); }, site);
}

inline uint32_t round_to_tf32(uint32_t bits) {
  const bool finite = (bits & 0x7f800000) != 0x7f800000, quiet = (bits & 0x7fffffff) > 0x7f800000;
  return finite ? (bits + 0x1000) & ~0x1fffu : quiet ? 0x7fffffff : bits;
}

void mma_tf32(float* acc, const uint32_t* a, const uint32_t* b, Site site);
inline void mma_m16n8k8(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        SIMT_SITE) {
  mma_tf32(acc, a, b, site);
}

// A kernel's call, which every thread makes. Its memory belongs to the launch, not to the thread.
struct Call {
  void (*run)(const void* arguments);
  const void* arguments;
  size_t bytes;
  const void* kernel;
};
cudaError_t run_grid(const Call& call, dim3 grid, dim3 block, size_t shared_bytes);

template <typename... P>
struct Bound {
  void (*kernel)(P...);
  std::tuple<P...> arguments;

  __attribute__((no_sanitize("thread"))) static void run(const void* self) {
    static_cast<const Bound*>(self)->call(std::index_sequence_for<P...>());
  }
  template <size_t... i>
  __attribute__((no_sanitize("thread"))) void call(std::index_sequence<i...>) const {
    kernel(std::get<i>(arguments)...);
  }
};

template <typename... P, typename... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   A... args) {
  const Bound<P...> bound{kernel, {static_cast<P>(args)...}};
  return run_grid({&Bound<P...>::run, &bound, sizeof bound, reinterpret_cast<const void*>(kernel)},
                  grid, block, shared_bytes);
}

template <typename T>
uint64_t bits_of(T value) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  return bits;
}

template <typename T>
T value_of(uint64_t bits) {
  T value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// All fibers share one OS thread, so that a plain read and write is atomic; the checker is told
// that it is an atomic.
template <typename T, typename Change>
__attribute__((no_sanitize("thread"), noinline)) T change_atomically(T* address, Change change,
                                                                     Site site) {
  check_atomic(address, sizeof(T), __builtin_return_address(0), site);
  const T old = *address;
  *address = change(old);
  return old;
}

}  // namespace simt

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static_assert(false, "declare it by SIMT_SHARED or SIMT_DYN_SHARED");

#define SIMT_SHARED(T, name, ...)                                         \
  auto& name = *reinterpret_cast<T(*) __VA_ARGS__>(simt::shared_variable( \
      #name, sizeof(T __VA_ARGS__), sizeof(T), __PRETTY_FUNCTION__, {__FILE__, __LINE__}))
#define SIMT_DYN_SHARED(T, name) \
  T* const name = static_cast<T*>(simt::dynamic_shared({__FILE__, __LINE__}))

#define threadIdx (simt::thread_index())
#define blockIdx (simt::block_index())
#define blockDim (simt::block_size())
#define gridDim (simt::grid_size())
constexpr int warpSize = 32;

inline void __syncthreads(SIMT_SITE) { simt::block_barrier(simt::Barrier::kPlain, 0, site); }
inline int __syncthreads_count(int predicate, SIMT_SITE) {
  return simt::block_barrier(simt::Barrier::kCount, predicate, site);
}
inline int __syncthreads_and(int predicate, SIMT_SITE) {
  return simt::block_barrier(simt::Barrier::kAnd, predicate, site);
}
inline int __syncthreads_or(int predicate, SIMT_SITE) {
  return simt::block_barrier(simt::Barrier::kOr, predicate, site);
}
inline void __syncwarp(unsigned mask = 0xffffffff, SIMT_SITE) { simt::warp_barrier(mask, site); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, SIMT_SITE) {
  const uint64_t bits = simt::bits_of(value);
  return simt::value_of<T>(simt::shuffle(simt::Shuffle::kIndex, mask, bits, lane, width, site));
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
  const uint64_t bits = simt::bits_of(value);
  return simt::value_of<T>(
      simt::shuffle(simt::Shuffle::kUp, mask, bits, static_cast<int>(delta), width, site));
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
  const uint64_t bits = simt::bits_of(value);
  return simt::value_of<T>(
      simt::shuffle(simt::Shuffle::kDown, mask, bits, static_cast<int>(delta), width, site));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, SIMT_SITE) {
  const uint64_t bits = simt::bits_of(value);
  return simt::value_of<T>(simt::shuffle(simt::Shuffle::kXor, mask, bits, lanes, width, site));
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_SITE) {
  return simt::vote(mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, SIMT_SITE) {
  return simt::vote(mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_SITE) {
  return simt::vote(mask, predicate == 0, site) == 0;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value, SIMT_SITE) {
  return simt::reduce_add(mask, value, site);
}

inline void __threadfence() { simt::fence(); }
inline void __threadfence_block() {}  // orders nothing that the checker could see

template <typename T>
SIMT_INLINE T atomicAdd(T* address, T value, SIMT_SITE) {
  return simt::change_atomically(address, [=](T old) { return static_cast<T>(old + value); }, site);
}
template <typename T>
SIMT_INLINE T atomicMax(T* address, T value, SIMT_SITE) {
  return simt::change_atomically(address, [=](T old) { return old < value ? value : old; }, site);
}
template <typename T>
SIMT_INLINE T atomicExch(T* address, T value, SIMT_SITE) {
  return simt::change_atomically(address, [=](T) { return value; }, site);
}
template <typename T>
SIMT_INLINE T atomicCAS(T* address, T expected, T value, SIMT_SITE) {
  return simt::change_atomically(
      address, [=](T old) { return old == expected ? value : old; }, site);
}
SIMT_INLINE unsigned atomicInc(unsigned* address, unsigned limit, SIMT_SITE) {
  return simt::change_atomically(
      address, [=](unsigned old) { return old >= limit ? 0 : old + 1; }, site);
}

// The read-only cache: no thread of the launch may write there.
template <typename T>
SIMT_INLINE T __ldg(const T* address, SIMT_SITE) {
  simt::check_read_only(address, sizeof(T), site);
  return *address;
}

using std::max;
using std::min;
inline unsigned __float_as_uint(float value) { return simt::to_bits(value); }
inline float __uint_as_float(unsigned bits) { return simt::from_bits(bits); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline void sincospif(float x, float* sine, float* cosine) {
  *sine = static_cast<float>(sin(M_PI * static_cast<double>(x)));
  *cosine = static_cast<float>(cos(M_PI * static_cast<double>(x)));
}
