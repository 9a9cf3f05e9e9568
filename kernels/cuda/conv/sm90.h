// Shared by the Hopper kernels for kernel 4, stride 2, padding 1. A block loads the pixels that its
// taps read, with a border (the halo), once, and applies the prologue to them once; tap by tap,
// fprop would load a pixel four times and dgrad 16 times. A tap's shift is another start of the
// operand, which wgmma accepts at any pixel because a pixel's eight channels are 16 bytes and
// nothing is swizzled.
#pragma once

#include "../simt/hopper.h"
#include "launch.h"

namespace genimg::cuda {

// Whether a kernel that reads whole vectors for all 16 taps supports the geometry.
template <typename T>
bool fits_halo(const ConvGeometry& g, const T* small, const T* weight, const T* large,
               const ConvPrologue& prologue) {
  const auto is = [](int h, int w, int size) { return h == size && w == size; };
  return is(g.kernel_h, g.kernel_w, 4) && is(g.stride_h, g.stride_w, 2) &&
         is(g.pad_h, g.pad_w, 1) && g.small_c % 8 == 0 && g.large_c % 8 == 0 &&
         are_aligned(small, weight, large) && are_aligned(prologue);
}

// The weight's tensor map: a load takes a box of channels of each image, for one tap.
template <typename T>
cudaError_t make_tap_map(simt::TensorMap* map, const ConvGeometry& g, const T* weight,
                         uint32_t large_c, uint32_t small_c) {
  const auto columns = static_cast<uint32_t>(g.large_c);
  return simt::make_tensor_map(map, {weight,
                                     4,
                                     {columns, 4, 4, static_cast<uint32_t>(g.small_c)},
                                     {2ull * columns, 8ull * columns, 32ull * columns},
                                     {large_c, 1, 1, small_c},
                                     simt::Swizzle::k128});
}

// The layout of pixels of kDepth channels in shared memory: planes of eight channels, in which a
// pixel is 16 bytes. The gap between planes keeps the stores of eight threads, to the planes of one
// or two pixels, in different banks.
template <int kPixelCount, int kDepth>
struct HaloLayout {
  static constexpr int kPixels = kPixelCount, kPlanes = kDepth / 8;
  static constexpr int kPlane = 16 * (kPixels + 8 / kPlanes);
  static constexpr int kBytes = kPlanes * kPlane;
  static_assert(kPixels % (16 / kPlanes) == 0);
};

// Two stages, each with the weights of a step, swizzled by TMA, and its halo.
template <int kWeights, typename Layout>
struct HaloStages {
  static constexpr int kCount = 2, kWeightBytes = kWeights;
  static constexpr size_t kBytes = kCount * (kWeights + Layout::kBytes);
  static constexpr size_t kSharedBytes = kBytes + 1024;  // to begin at a multiple of 1024
  static_assert(kWeights % 1024 == 0);

  unsigned char* shared;

  __device__ explicit HaloStages(unsigned char* raw)
      : shared(raw + (1024 - simt::shared_address(raw) % 1024) % 1024) {}
  __device__ __forceinline__ unsigned char* weights(int stage) const {
    return shared + stage * kWeights;
  }
  __device__ __forceinline__ unsigned char* halo(int stage) const {
    return shared + kCount * kWeights + stage * Layout::kBytes;
  }
};

// The place of a pixel of the halo in up to four phases of the image: `offset` elements from the
// image's beginning plus the phase's shift; it is outside if the phase's bit of `inside` is 0.
struct HaloPixel {
  int64_t offset;
  unsigned inside;
};

// The part of the image that a step reads: a phase, and channels from `first` on.
struct HaloPart {
  int phase;
  int64_t shift;
  int first;
};

// The thread's share of the halo: 16 bytes in each pass.
template <typename T, typename Prologue, typename Layout, int kThreads>
class Halo {
 public:
  // locate(pixel) is a HaloPixel.
  template <typename Locate>
  __device__ Halo(const T* image, int channels, const ConvPrologue& prologue, Locate locate)
      : image_(image), channels_(channels), prologue_(prologue) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const HaloPixel found = has(pass) ? locate(pixel(pass)) : HaloPixel{0, 0};
      offset_[pass] = found.offset + plane() * 8;
      inside_ |= found.inside << 4 * pass;
    }
  }

  __device__ __forceinline__ void fetch(const HaloPart& part) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      held_[pass] =
          is_inside(pass, part) ? load_vector<8>(image_ + offset(pass, part)) : Vector<T>{};
    }
  }

  __device__ __forceinline__ void deposit(unsigned char* halo, const HaloPart& part) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      if (!has(pass)) break;
      // Pixels outside the image stay 0.
      if (is_inside(pass, part)) {
        prologue_(held_[pass].lane, offset(pass, part), part.first + plane() * 8);
      }
      unsigned char* const to = halo + plane() * Layout::kPlane + pixel(pass) * 16;
      store_vector(reinterpret_cast<T*>(to), held_[pass]);
    }
  }

 private:
  static constexpr int kStep = kThreads / Layout::kPlanes;
  static constexpr int kPasses = (Layout::kPixels + kStep - 1) / kStep;
  static_assert(kThreads % Layout::kPlanes == 0 && 4 * kPasses <= 32);

  static __device__ __forceinline__ int plane() {
    return static_cast<int>(threadIdx.x) % Layout::kPlanes;
  }
  static __device__ __forceinline__ int pixel(int pass) {
    return static_cast<int>(threadIdx.x) / Layout::kPlanes + pass * kStep;
  }
  static __device__ __forceinline__ bool has(int pass) { return pixel(pass) < Layout::kPixels; }
  __device__ __forceinline__ int64_t offset(int pass, const HaloPart& part) const {
    return offset_[pass] + part.shift + part.first;
  }
  __device__ __forceinline__ bool is_inside(int pass, const HaloPart& part) const {
    return (inside_ >> (4 * pass + part.phase) & 1) != 0 && part.first + plane() * 8 < channels_;
  }

  const T* image_;
  int channels_;
  Prologue prologue_;
  unsigned inside_ = 0;
  int64_t offset_[kPasses];
  Vector<T> held_[kPasses];
};

#ifdef SIMT_HOPPER

// Sums the products of `steps` steps. part(step) is the HaloPart to read; load(to, barrier, step)
// starts to fill a stage's weights by TMA; multiply(weights, halo) issues the products. On return
// the stages are free.
template <typename Stages, typename Halo, typename Sums, typename Part, typename Load,
          typename Multiply>
__device__ __forceinline__ void multiply_halo(const Stages& stages, Halo& halo, Sums& sums,
                                              int steps, Part part, Load load, Multiply multiply) {
  SIMT_SHARED(uint64_t, full, [Stages::kCount]);  // of the weights
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Stages::kCount; ++stage) simt::mbarrier_init(&full[stage], 1);
    simt::mbarrier_init_fence();
  }
  __syncthreads();
  const auto load_weights = [&](int step) {
    const int stage = step % Stages::kCount;
    if (threadIdx.x == 0) simt::mbarrier_arrive_expect(&full[stage], Stages::kWeightBytes);
    load(stages.weights(stage), &full[stage], step);
  };
  for (int step = 0; step < Stages::kCount && step < steps; ++step) load_weights(step);

  halo.fetch(part(0));
  halo.deposit(stages.halo(0), part(0));
  simt::fence_proxy_async();
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    const int stage = step % Stages::kCount;
    const bool more = step + 1 < steps;
    if (more) halo.fetch(part(step + 1));
    simt::mbarrier_wait(&full[stage], step / Stages::kCount & 1);
    simt::wgmma_fence(sums);
    multiply(stages.weights(stage), stages.halo(stage));
    simt::wgmma_commit();
    if (more) {
      halo.deposit(stages.halo(stage ^ 1), part(step + 1));
      simt::fence_proxy_async();
    }
    simt::wgmma_wait<0>(sums);
    __syncthreads();  // this stage has been read, and the next halo is visible
    if (step + Stages::kCount < steps) load_weights(step + Stages::kCount);
  }
}

// Writes a group's 64 rows of sums, in wgmma's layout, to row place(row) of the result; rows with a
// negative place are not written.
template <typename Result, int kSums, typename Place>
__device__ __forceinline__ void stage_sums(Result result, const float (&sums)[kSums], Place place) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = place(thread / 32 * 16 + 8 * half + thread % 32 / 4);
    if (row < 0) continue;
#pragma unroll
    for (int i = 0; i < kSums / 4; ++i) {
      *reinterpret_cast<float2*>(result.at(row, 8 * i + thread % 4 * 2)) =
          float2{sums[4 * i + 2 * half], sums[4 * i + 2 * half + 1]};
    }
  }
}

#endif

}  // namespace genimg::cuda
