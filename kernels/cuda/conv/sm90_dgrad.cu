// dgrad on Hopper. A block reads 8 x 16 pixels of the small image and computes their 16 x 32 pixels
// of the large image, in all four phases. Each phase reads the same pixels, shifted by one at most:
// one halo, with one more pixel on each side.
#include "sm90_dgrad.h"

#include "sm90.h"

namespace genimg::cuda {
namespace {

constexpr int kHeight = 8, kWidth = 16, kGroups = 2, kThreads = 128 * kGroups;
constexpr int kColumns = 64, kDepth = 32, kTaps = 16;

// A tap's weights: [32 channels][64 columns].
constexpr int kTapBytes = kDepth * kColumns * 2;
constexpr int kHaloWidth = kWidth + 2;
using Layout = HaloLayout<kHaloWidth*(kHeight + 2), kDepth>;
using Stages = HaloStages<kTaps * kTapBytes, Layout>;
using Result = Tile<float, 4 * kHeight * kWidth, kColumns>;
static_assert(Stages::kBytes >= sizeof(float) * Result::kElements);

#ifdef SIMT_HOPPER

// The first of the block's pixels: image, row and column in the small image.
struct Position {
  int64_t image;
  int y, x;
};

// Issues all products of a stage for the group's 8 x 8 pixels. Phase (rh, rw) meets in tap
// 1 + r - 2 d pixels shifted by d, which is r - 1 or r along each axis.
template <typename T>
__device__ __forceinline__ void multiply_phases(float (&sums)[4][32], const unsigned char* weights,
                                                const unsigned char* halo, int group) {
  const uint64_t b = simt::matrix_descriptor(weights, simt::Swizzle::k128, 1024);
  const uint64_t a = simt::matrix_descriptor(halo + group * 8 * 16, simt::Swizzle::kNone,
                                             16 * kHaloWidth, Layout::kPlane);
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
#pragma unroll
    for (int phase = 0; phase < 4; ++phase) {
#pragma unroll
      for (int tap = 0; tap < 4; ++tap) {
        const int rh = phase / 2, rw = phase % 2, dh = rh - tap / 2, dw = rw - tap % 2;
        const int kh = 1 + rh - 2 * dh, kw = 1 + rw - 2 * dw;
        const int pixel = (1 + dh) * kHaloWidth + 1 + dw;
        simt::wgmma_m64n64k16<true>(sums[phase], a + pixel + k / 8 * Layout::kPlane / 16,
                                    b + ((kh * 4 + kw) * kTapBytes + k * 128) / 16, T{});
      }
    }
  }
}

#endif

template <typename T, bool kFused>
__global__ void __launch_bounds__(SIMT_HOPPER_THREADS(kThreads), 1)
    conv_sm90_dgrad_kernel(const __grid_constant__ simt::TensorMap weight_map, ConvGeometry g,
                           const T* small, T* large, ConvPrologue prologue, ConvEpilogue epilogue) {
#ifdef SIMT_HOPPER
  SIMT_DYN_SHARED(unsigned char, raw);
  const Stages stages(raw);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128;
  // Neighbouring blocks read the same pixels for other channels.
  const unsigned tiles = (g.large_c + kColumns - 1) / kColumns;
  const unsigned across = (g.large_w + 2 * kWidth - 1) / (2 * kWidth);
  const unsigned down = (g.large_h + 2 * kHeight - 1) / (2 * kHeight);
  const int first_column = static_cast<int>(blockIdx.x % tiles) * kColumns;
  const unsigned piece = blockIdx.x / tiles;
  const Position first = {piece / across / down, static_cast<int>(piece / across % down) * kHeight,
                          static_cast<int>(piece % across) * kWidth};

  Halo<T, Prologue<T, kFused>, Layout, kThreads> halo(small, g.small_c, prologue, [&](int pixel) {
    const int y = first.y - 1 + pixel / kHaloWidth, x = first.x - 1 + pixel % kHaloWidth;
    const bool inside = static_cast<unsigned>(y) < unsigned(g.small_h) &&
                        static_cast<unsigned>(x) < unsigned(g.small_w);
    return HaloPixel{((first.image * g.small_h + y) * g.small_w + x) * g.small_c, inside ? 1u : 0u};
  });
  float sums[4][32] = {};
  multiply_halo(
      stages, halo, sums, (g.small_c + kDepth - 1) / kDepth,
      [](int step) { return HaloPart{0, 0, step * kDepth}; },
      [&](unsigned char* to, uint64_t* barrier, int step) {
        if (thread >= kTaps) return;
        simt::tma_load(to + thread * kTapBytes, weight_map, barrier, first_column, thread % 4,
                       thread / 4, step * kDepth);
      },
      [&](const unsigned char* weights, const unsigned char* pixels) {
        multiply_phases<T>(sums, weights, pixels, group);
      });

  // The block's pixels that are inside the large image, row after row.
  const int height = min(2 * kHeight, g.large_h - 2 * first.y);
  const int width = min(2 * kWidth, g.large_w - 2 * first.x);
  const Result result{reinterpret_cast<float*>(stages.shared)};
#pragma unroll
  for (int phase = 0; phase < 4; ++phase) {
    stage_sums(result, sums[phase], [&](int row) {
      const int y = row / 8 * 2 + phase / 2, x = (row % 8 + group * 8) * 2 + phase % 2;
      return y < height && x < width ? y * width + x : -1;
    });
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
  __trap();  // conv_sm90_dgrad_serves() is false here
#endif
}

int64_t pieces_of(const ConvGeometry& g) {
  return g.batch * ceil_div(g.large_h, 2 * kHeight) * ceil_div(g.large_w, 2 * kWidth);
}

template <typename T>
auto kernel_of(bool fused) {
  return fused ? conv_sm90_dgrad_kernel<T, true> : conv_sm90_dgrad_kernel<T, false>;
}

}  // namespace

template <typename T>
bool conv_sm90_dgrad_serves(const ConvGeometry& g, const T* small, const T* weight, const T* large,
                            const ConvPrologue& prologue, bool fused) {
  // A block is one piece of the sums; the workspace has room for one piece per 64 pixels of a
  // phase.
  const int64_t rows = g.batch * ceil_div(g.large_h, 2) * ceil_div(g.large_w, 2);
  const bool large_enough =
      g.small_h > 1 && g.small_w > 1 && (!fused || pieces_of(g) <= 4 * ceil_div(rows, kSummedRows));
  return fits_halo(g, small, weight, large, prologue) && large_enough &&
         simt::runs_hopper(kernel_of<T>(fused), kThreads);
}

template <typename T>
cudaError_t launch_conv_sm90_dgrad(const ConvGeometry& g, const T* small, const T* weight, T* large,
                                   const ConvPrologue& prologue, const ConvEpilogue& epilogue,
                                   bool fused, cudaStream_t stream) {
  simt::TensorMap map;
  const cudaError_t status = make_tap_map(&map, g, weight, kColumns, kDepth);
  if (status != cudaSuccess) return status;
  dim3 grid;
  if (!grid_of(pieces_of(g) * ceil_div(g.large_c, kColumns), &grid)) return cudaErrorInvalidValue;
  return simt::launch(kernel_of<T>(fused), grid, kThreads, Stages::kSharedBytes, stream, map, g,
                      small, large, prologue, epilogue);
}

#define GENIMG_INSTANTIATE(T)                                                                    \
  template bool conv_sm90_dgrad_serves<T>(const ConvGeometry&, const T*, const T*, const T*,     \
                                          const ConvPrologue&, bool);                            \
  template cudaError_t launch_conv_sm90_dgrad<T>(const ConvGeometry&, const T*, const T*, T*,    \
                                                 const ConvPrologue&, const ConvEpilogue&, bool, \
                                                 cudaStream_t);
GENIMG_INSTANTIATE(__half)
GENIMG_INSTANTIATE(__nv_bfloat16)
#undef GENIMG_INSTANTIATE

}  // namespace genimg::cuda
