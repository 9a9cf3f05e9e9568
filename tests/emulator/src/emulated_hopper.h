// Hopper's instructions as kernel files see them in the emulated build; hopper.h says what they do.
#pragma once

#include "emulation.h"
#include "tensor_map.h"

#define SIMT_HOPPER
#define SIMT_HOPPER_THREADS(threads) threads
#define __grid_constant__

namespace simt {

uint32_t shared_address(const void* pointer);

void mbarrier_init(uint64_t* barrier, unsigned arrivals, SIMT_SITE);
void mbarrier_init_fence();
void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes, SIMT_SITE);
void mbarrier_arrive(uint64_t* barrier, SIMT_SITE);
void mbarrier_wait(uint64_t* barrier, unsigned parity, SIMT_SITE);
void fence_proxy_async();

void load_box(void* to, const TensorMap& map, uint64_t* barrier, const int* at, int rank,
              Site site);
SIMT_INLINE void tma_load(void* to, const TensorMap& map, uint64_t* barrier, int x, int y,
                          SIMT_SITE) {
  const int at[] = {x, y};
  load_box(to, map, barrier, at, 2, site);
}
SIMT_INLINE void tma_load(void* to, const TensorMap& map, uint64_t* barrier, int x, int y, int z,
                          int w, SIMT_SITE) {
  const int at[] = {x, y, z, w};
  load_box(to, map, barrier, at, 4, site);
}

void fence_registers(Site site);
template <typename Sums>
void wgmma_fence(Sums&, SIMT_SITE) {
  fence_registers(site);
}
void wgmma_commit(SIMT_SITE);
void wgmma_wait_groups(int newest, Site site);
template <int kNewest, typename Sums>
void wgmma_wait(Sums&, SIMT_SITE) {
  wgmma_wait_groups(kNewest, site);
}

template <int kRegisters>
void raise_registers() {}
template <int kRegisters>
void lower_registers() {}

void wgmma(float* acc, unsigned columns, uint64_t a, uint64_t b, bool b_by_k,
           float (*widen)(uint16_t), Site site);
#define SIMT_WGMMA(columns, T, to_float)                                                          \
  template <bool kBByK>                                                                           \
  SIMT_INLINE void wgmma_m64n##columns##k16(float (&acc)[columns / 2], uint64_t a, uint64_t b, T, \
                                            SIMT_SITE) {                                          \
    wgmma(acc, columns, a, b, kBByK, [](uint16_t bits) { return to_float({bits}); }, site);       \
  }
SIMT_WGMMA(64, __nv_bfloat16, __bfloat162float)
SIMT_WGMMA(64, __half, __half2float)
SIMT_WGMMA(128, __nv_bfloat16, __bfloat162float)
SIMT_WGMMA(128, __half, __half2float)
#undef SIMT_WGMMA

template <typename... P>
bool runs_hopper(void (*)(P...), int) {
  return true;
}

}  // namespace simt
