// A block has 8 x 16 pixels of the small image and what becomes of them in all four phases, 16 x 32
// pixels of the large one. Each phase reads the same pixels, shifted by one at most: they are
// loaded once, with a border, and go once through the prologue. A shift is another start of the
// operand, which wgmma takes at any pixel because a pixel's eight channels are 16 bytes and nothing
// is swizzled. Phase by phase, these pixels would be read and transformed nine times.
#include "conv_dgrad_halo.h"

#include "conv_launch.h"
#include "simt/hopper.h"

namespace genimg::cuda {
namespace {

constexpr int kHeight = 8, kWidth = 16, kGroups = 2, kThreads = 128 * kGroups;
constexpr int kColumns = 64, kDepth = 32, kTaps = 16, kStages = 2;

// Bytes of a stage. Weights: a tap's [32 channels][64 columns], swizzled. The halo: planes of eight
// channels, in which a pixel is 16 bytes; the gap between them keeps eight threads' stores, to two
// pixels of four planes, in different banks.
constexpr int kTapBytes = kDepth * kColumns * 2, kWeightBytes = kTaps * kTapBytes;
constexpr int kHaloWidth = kWidth + 2, kHaloPixels = kHaloWidth * (kHeight + 2);
constexpr int kPlane = 16 * (kHaloPixels + 2);
constexpr int kPlanes = kDepth / 8, kHaloBytes = kPlanes * kPlane;

using Result = Tile<float, 4 * kHeight * kWidth, kColumns>;
constexpr size_t kStageBytes = kStages * (kWeightBytes + kHaloBytes);
static_assert(kStageBytes >= sizeof(float) * Result::kElements);
constexpr size_t kSharedBytes = kStageBytes + 1024;  // to begin at a multiple of 1024

// Of the block's pixels: the first one's row and column, in the small image, and the image.
struct Position {
  int64_t image;
  int y, x;
};

#ifdef SIMT_HOPPER

constexpr int kPitch = 16 * kHaloWidth;
constexpr int kPasses = (kHaloPixels * kPlanes + kThreads - 1) / kThreads;

// The thread's share of the halo: 16 bytes in each pass.
template <typename T, typename Prologue>
class Halo {
 public:
  __device__ Halo(const ConvGeometry& g, const T* small, const Position& first,
                  const ConvPrologue& prologue)
      : small_(small), channels_(g.small_c), prologue_(prologue) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int pixel = chunk(pass) / kPlanes;
      const int y = first.y - 1 + pixel / kHaloWidth, x = first.x - 1 + pixel % kHaloWidth;
      const bool inside = pixel < kHaloPixels && static_cast<unsigned>(y) < unsigned(g.small_h) &&
                          static_cast<unsigned>(x) < unsigned(g.small_w);
      const int64_t number = (first.image * g.small_h + y) * g.small_w + x;
      offset_[pass] = inside ? number * channels_ + chunk(pass) % kPlanes * 8 : -1;
    }
  }

  // Reads the channels from `first` on.
  __device__ __forceinline__ void fetch(int first) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      held_[pass] =
          is_inside(pass, first) ? load_vector<8>(small_ + offset_[pass] + first) : Vector<T>{};
    }
  }

  __device__ __forceinline__ void deposit(unsigned char* halo, int first) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      if (chunk(pass) >= kHaloPixels * kPlanes) break;
      // What lies outside stays 0.
      if (is_inside(pass, first)) {
        prologue_(held_[pass].lane, offset_[pass] + first, channel(pass, first));
      }
      const int plane = chunk(pass) % kPlanes, pixel = chunk(pass) / kPlanes;
      store_vector(reinterpret_cast<T*>(halo + plane * kPlane + pixel * 16), held_[pass]);
    }
  }

 private:
  static __device__ __forceinline__ int chunk(int pass) {
    return static_cast<int>(threadIdx.x) + pass * kThreads;
  }
  static __device__ __forceinline__ int channel(int pass, int first) {
    return first + chunk(pass) % kPlanes * 8;
  }
  __device__ __forceinline__ bool is_inside(int pass, int first) const {
    return offset_[pass] >= 0 && channel(pass, first) < channels_;
  }

  const T* small_;
  int channels_;
  Prologue prologue_;
  int64_t offset_[kPasses];
  Vector<T> held_[kPasses];
};

// Issues all products of a stage for the group's 8 x 8 pixels. Phase (rh, rw) meets in tap
// 1 + r - 2 d pixels shifted by d, which is r - 1 or r along each axis.
template <typename T>
__device__ __forceinline__ void multiply_phases(float (&sums)[4][32], const unsigned char* weights,
                                                const unsigned char* halo, int group) {
  const uint64_t b = simt::matrix_descriptor(weights, simt::Swizzle::k128, 1024);
  const uint64_t a =
      simt::matrix_descriptor(halo + group * 8 * 16, simt::Swizzle::kNone, kPitch, kPlane);
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
#pragma unroll
    for (int phase = 0; phase < 4; ++phase) {
#pragma unroll
      for (int tap = 0; tap < 4; ++tap) {
        const int rh = phase / 2, rw = phase % 2, dh = rh - tap / 2, dw = rw - tap % 2;
        const int kh = 1 + rh - 2 * dh, kw = 1 + rw - 2 * dw;
        const int pixel = (1 + dh) * kHaloWidth + 1 + dw;
        simt::wgmma_m64n64k16<true>(sums[phase], a + pixel + k / 8 * kPlane / 16,
                                    b + ((kh * 4 + kw) * kTapBytes + k * 128) / 16, T{});
      }
    }
  }
}

#endif

template <typename T, bool kFused>
__global__ void __launch_bounds__(SIMT_HOPPER_THREADS(kThreads), 1)
    conv_dgrad_halo_kernel(const __grid_constant__ simt::TensorMap weight_map, ConvGeometry g,
                           const T* small, T* large, ConvPrologue prologue, ConvEpilogue epilogue) {
#ifdef SIMT_HOPPER
  SIMT_DYN_SHARED(unsigned char, raw);
  SIMT_SHARED(uint64_t, full, [kStages]);  // of the weights
  unsigned char* const shared = raw + (1024 - simt::shared_address(raw) % 1024) % 1024;
  const auto weights_of = [=](int stage) { return shared + stage * kWeightBytes; };
  const auto halo_of = [=](int stage) {
    return shared + kStages * kWeightBytes + stage * kHaloBytes;
  };
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128;
  // Neighbouring blocks read the same pixels, for other channels.
  const unsigned tiles = (g.large_c + kColumns - 1) / kColumns;
  const unsigned across = (g.large_w + 2 * kWidth - 1) / (2 * kWidth);
  const unsigned down = (g.large_h + 2 * kHeight - 1) / (2 * kHeight);
  const int first_column = static_cast<int>(blockIdx.x % tiles) * kColumns;
  const unsigned piece = blockIdx.x / tiles;
  const Position first = {piece / across / down, static_cast<int>(piece / across % down) * kHeight,
                          static_cast<int>(piece % across) * kWidth};

  if (thread == 0) {
    for (int stage = 0; stage < kStages; ++stage) simt::mbarrier_init(&full[stage], 1);
    simt::mbarrier_init_fence();
  }
  __syncthreads();
  const int steps = (g.small_c + kDepth - 1) / kDepth;
  const auto load_weights = [&](int step) {
    const int stage = step % kStages;
    if (thread == 0) simt::mbarrier_arrive_expect(&full[stage], kWeightBytes);
    if (thread < kTaps) {
      simt::tma_load(weights_of(stage) + thread * kTapBytes, weight_map, &full[stage], first_column,
                     thread % 4, thread / 4, step * kDepth);
    }
  };
  for (int step = 0; step < kStages && step < steps; ++step) load_weights(step);

  Halo<T, Prologue<T, kFused>> halo(g, small, first, prologue);
  float sums[4][32] = {};
  halo.fetch(0);
  halo.deposit(halo_of(0), 0);
  simt::fence_proxy_async();
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages, next = (step + 1) * kDepth;
    const bool more = step + 1 < steps;
    if (more) halo.fetch(next);
    simt::mbarrier_wait(&full[stage], step / kStages & 1);
    simt::wgmma_fence(sums);
    multiply_phases<T>(sums, weights_of(stage), halo_of(stage), group);
    simt::wgmma_commit();
    if (more) {
      halo.deposit(halo_of(stage ^ 1), next);
      simt::fence_proxy_async();
    }
    simt::wgmma_wait<0>(sums);
    __syncthreads();  // this stage has been read, and the next halo is there
    if (step + kStages < steps) load_weights(step + kStages);
  }

  // The block's pixels that are inside the large image, row after row.
  const int height = min(2 * kHeight, g.large_h - 2 * first.y);
  const int width = min(2 * kWidth, g.large_w - 2 * first.x);
  const Result result{reinterpret_cast<float*>(shared)};
#pragma unroll
  for (int phase = 0; phase < 4; ++phase) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = thread % 128 / 32 * 16 + 8 * half + thread % 32 / 4;
      const int y = row / 8 * 2 + phase / 2, x = (row % 8 + group * 8) * 2 + phase % 2;
      if (y >= height || x >= width) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        *reinterpret_cast<float2*>(result.at(y * width + x, 8 * i + thread % 4 * 2)) =
            float2{sums[phase][4 * i + 2 * half], sums[phase][4 * i + 2 * half + 1]};
      }
    }
  }
  __syncthreads();
  const auto offset_of = [&](int row) -> int64_t {
    if (row >= height * width) return -1;
    const int y = 2 * first.y + row / width, x = 2 * first.x + row % width;
    return ((first.image * g.large_h + y) * g.large_w + x) * g.large_c;
  };
  write_result<kThreads, true>(result, large, first_column, g.large_c,
                               Epilogue<T, kFused>{epilogue}, offset_of);
  if constexpr (kFused) {
    if (epilogue.sums.scratch == nullptr) return;
    add_sums<kThreads, T>(result, height * width, epilogue, first_column, g.large_c,
                          blockIdx.x % tiles, piece, gridDim.x / tiles, offset_of);
  }
#else
  __trap();  // conv_dgrad_halo_serves() has said no
#endif
}

int64_t pieces_of(const ConvGeometry& g) {
  return g.batch * ceil_div(g.large_h, 2 * kHeight) * ceil_div(g.large_w, 2 * kWidth);
}

template <typename T>
auto kernel_of(bool fused) {
  return fused ? conv_dgrad_halo_kernel<T, true> : conv_dgrad_halo_kernel<T, false>;
}

}  // namespace

template <typename T>
bool conv_dgrad_halo_serves(const ConvGeometry& g, const T* small, const T* weight, const T* large,
                            const ConvPrologue& prologue, bool fused) {
  const auto is = [](int h, int w, int size) { return h == size && w == size; };
  const bool phases =
      is(g.kernel_h, g.kernel_w, 4) && is(g.stride_h, g.stride_w, 2) && is(g.pad_h, g.pad_w, 1);
  const bool wide = g.small_c % 8 == 0 && g.large_c % 8 == 0 && are_aligned(small, weight, large) &&
                    are_aligned(prologue);
  // A block is one piece of the sums, for which there is room of one in 64 pixels of a phase.
  const int64_t rows = g.batch * ceil_div(g.large_h, 2) * ceil_div(g.large_w, 2);
  const bool large_enough =
      g.small_h > 1 && g.small_w > 1 && (!fused || pieces_of(g) <= 4 * ceil_div(rows, kSummedRows));
  return phases && wide && large_enough && simt::runs_hopper(kernel_of<T>(fused), kThreads);
}

template <typename T>
cudaError_t launch_conv_dgrad_halo(const ConvGeometry& g, const T* small, const T* weight, T* large,
                                   const ConvPrologue& prologue, const ConvEpilogue& epilogue,
                                   bool fused, cudaStream_t stream) {
  const auto columns = static_cast<uint32_t>(g.large_c);
  const simt::TensorView view = {weight,
                                 4,
                                 {columns, 4, 4, static_cast<uint32_t>(g.small_c)},
                                 {2ull * columns, 8ull * columns, 32ull * columns},
                                 {kColumns, 1, 1, kDepth},
                                 simt::Swizzle::k128};
  simt::TensorMap map;
  const cudaError_t status = simt::make_tensor_map(&map, view);
  if (status != cudaSuccess) return status;
  dim3 grid;
  if (!grid_of(pieces_of(g) * ceil_div(g.large_c, kColumns), &grid)) return cudaErrorInvalidValue;
  return simt::launch(kernel_of<T>(fused), grid, kThreads, kSharedBytes, stream, map, g, small,
                      large, prologue, epilogue);
}

#define GENIMG_INSTANTIATE(T)                                                                    \
  template bool conv_dgrad_halo_serves<T>(const ConvGeometry&, const T*, const T*, const T*,     \
                                          const ConvPrologue&, bool);                            \
  template cudaError_t launch_conv_dgrad_halo<T>(const ConvGeometry&, const T*, const T*, T*,    \
                                                 const ConvPrologue&, const ConvEpilogue&, bool, \
                                                 cudaStream_t);
GENIMG_INSTANTIATE(__half)
GENIMG_INSTANTIATE(__nv_bfloat16)
#undef GENIMG_INSTANTIATE

}  // namespace genimg::cuda
