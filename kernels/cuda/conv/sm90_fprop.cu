// fprop on Hopper. The large image has four phases by the parity of row and column. Each phase
// meets four taps, which are shifts by 0 or 1 along each axis of the phase: a step reads one phase
// of the halo, 9 x 9 pixels for 8 x 8 of the small image, and the weights of its taps. A block has
// two such patches, one for each group, neighbours in the image or the end of one image and the
// beginning of the next: in an image of 8 x 8, half of a tile of 8 x 16 would be idle, and
// elsewhere it would save only 6% of the pixels. It has 128 columns, because m64n64k16 reads shared
// memory for as long as it multiplies; 64 if there are no more.
#include "sm90_fprop.h"

#include "sm90.h"

namespace genimg::cuda {
namespace {

constexpr int kGroups = 2, kThreads = 128 * kGroups;
constexpr int kSide = 8, kHaloSide = kSide + 1, kHaloPixels = kHaloSide * kHaloSide;
constexpr int kDepth = 64, kTaps = 4;

using Layout = HaloLayout<kGroups * kHaloPixels, kDepth>;

template <int kColumns>
struct Shape {
  static constexpr int kTapBytes = kColumns * kDepth * 2;  // [columns][64 channels]
  using Stages = HaloStages<kTaps * kTapBytes, Layout>;
  using Result = Tile<float, kGroups * kSide * kSide, kColumns>;
  static_assert(Stages::kBytes >= sizeof(float) * Result::kElements);
};

// Resident blocks per multiprocessor. There is memory for two blocks of 64 columns, but there are
// not enough registers for every prologue.
template <int kColumns, bool kFused>
constexpr int kResidentBlocks = kColumns == 64 && !kFused ? 2 : 1;

#ifdef SIMT_HOPPER

// A patch of the small image: image, row and column of its first pixel, and the size inside.
struct Patch {
  int64_t image;
  int y, x, height, width;

  __device__ Patch(const ConvGeometry& g, unsigned number) {
    const unsigned across = (g.small_w + kSide - 1) / kSide, down = (g.small_h + kSide - 1) / kSide;
    image = number / across / down;
    y = static_cast<int>(number / across % down) * kSide;
    x = static_cast<int>(number % across) * kSide;
    height = image < g.batch ? min(kSide, g.small_h - y) : 0;
    width = min(kSide, g.small_w - x);
  }

  __device__ __forceinline__ int pixels() const { return height * width; }

  // Row 2 y - 1 + tap of the large image is row y + tap / 2 of phase tap % 2, whose bit is set if
  // the row is inside; the same holds for columns.
  __device__ __forceinline__ HaloPixel locate(const ConvGeometry& g, int pixel) const {
    const int row = 2 * (y + pixel / kHaloSide) - 1, column = 2 * (x + pixel % kHaloSide) - 1;
    const auto both = [](int at, int size) {
      return (static_cast<unsigned>(at) < unsigned(size) ? 1u : 0u) |
             (static_cast<unsigned>(at + 1) < unsigned(size) ? 2u : 0u);
    };
    const unsigned rows = both(row, g.large_h), columns = both(column, g.large_w);
    const unsigned inside = (rows & 1 ? columns : 0) | (rows & 2 ? columns << 2 : 0);
    return {((image * g.large_h + row) * g.large_w + column) * g.large_c,
            image < g.batch ? inside : 0};
  }

  // The offset of the patch's pixel number `pixel`.
  __device__ __forceinline__ int64_t offset(const ConvGeometry& g, int pixel) const {
    return ((image * g.small_h + y + pixel / width) * g.small_w + x + pixel % width) * g.small_c;
  }
};

// Issues all products of a stage for the group's patch.
template <typename T, int kColumns>
__device__ __forceinline__ void multiply_taps(float (&sums)[kColumns / 2],
                                              const unsigned char* weights,
                                              const unsigned char* halo, int group) {
  const uint64_t a = simt::matrix_descriptor(halo + group * kHaloPixels * 16, simt::Swizzle::kNone,
                                             16 * kHaloSide, Layout::kPlane);
  const uint64_t b = simt::matrix_descriptor(weights, simt::Swizzle::k128, 1024);
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      const uint64_t a_part = a + tap / 2 * kHaloSide + tap % 2 + k / 8 * Layout::kPlane / 16;
      const uint64_t b_part = b + (tap * Shape<kColumns>::kTapBytes + k * 2) / 16;
      if constexpr (kColumns == 128) {
        simt::wgmma_m64n128k16<false>(sums, a_part, b_part, T{});
      } else {
        simt::wgmma_m64n64k16<false>(sums, a_part, b_part, T{});
      }
    }
  }
}

#endif

template <typename T, int kColumns, bool kFused>
__global__ void __launch_bounds__(SIMT_HOPPER_THREADS(kThreads), kResidentBlocks<kColumns, kFused>)
    conv_sm90_fprop_kernel(const __grid_constant__ simt::TensorMap weight_map, ConvGeometry g,
                           const T* large, T* small, ConvPrologue prologue, ConvEpilogue epilogue) {
#ifdef SIMT_HOPPER
  SIMT_DYN_SHARED(unsigned char, raw);
  const typename Shape<kColumns>::Stages stages(raw);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128;
  // Neighbouring blocks read the same pixels for other channels.
  const unsigned tiles = (g.small_c + kColumns - 1) / kColumns;
  const int first_column = static_cast<int>(blockIdx.x % tiles) * kColumns;
  const unsigned piece = blockIdx.x / tiles;
  const Patch one(g, piece * kGroups), other(g, piece * kGroups + 1);

  Halo<T, Prologue<T, kFused>, Layout, kThreads> halo(large, g.large_c, prologue, [&](int pixel) {
    return pixel < kHaloPixels ? one.locate(g, pixel) : other.locate(g, pixel - kHaloPixels);
  });
  float sums[kColumns / 2] = {};
  multiply_halo(
      stages, halo, sums, 4 * ((g.large_c + kDepth - 1) / kDepth),
      [&](int step) {
        const int phase = step % 4;
        const int64_t pixels = int64_t{phase / 2} * g.large_w + phase % 2;
        return HaloPart{phase, pixels * g.large_c, step / 4 * kDepth};
      },
      [&](unsigned char* to, uint64_t* barrier, int step) {
        if (thread >= kTaps) return;
        simt::tma_load(to + thread * Shape<kColumns>::kTapBytes, weight_map, barrier,
                       step / 4 * kDepth, thread % 2 * 2 + step % 2, thread / 2 * 2 + step % 4 / 2,
                       first_column);
      },
      [&](const unsigned char* weights, const unsigned char* pixels) {
        multiply_taps<T, kColumns>(sums, weights, pixels, group);
      });

  // The pixels of the patches that are inside the image, one patch after the other.
  const typename Shape<kColumns>::Result result{reinterpret_cast<float*>(stages.shared)};
  const int before = one.pixels(), pixels = before + other.pixels();
  const int height = group == 0 ? one.height : other.height;
  const int width = group == 0 ? one.width : other.width;
  stage_sums(result, sums, [&](int row) {
    const int y = row / kSide, x = row % kSide;
    return y < height && x < width ? group * before + y * width + x : -1;
  });
  __syncthreads();
  const auto offset_of = [&](int row) -> int64_t {
    if (row >= pixels) return -1;
    return row < before ? one.offset(g, row) : other.offset(g, row - before);
  };
  write_result<kThreads, true>(result, small, first_column, g.small_c,
                               Epilogue<T, kFused>{epilogue}, offset_of);
  if constexpr (kFused) {
    if (epilogue.sums.scratch == nullptr) return;
    add_sums<kThreads, T>(result, pixels, epilogue, first_column, g.small_c, blockIdx.x % tiles,
                          piece, gridDim.x / tiles, offset_of);
  }
#else
  __trap();  // conv_sm90_fprop_serves() is false here
#endif
}

int64_t pieces_of(const ConvGeometry& g) {
  return ceil_div(g.batch * ceil_div(g.small_h, kSide) * ceil_div(g.small_w, kSide), kGroups);
}

// Calls run(kernel, columns) for the number of columns that suits.
template <typename T, typename Run>
auto with_columns(const ConvGeometry& g, bool fused, Run run) {
  const auto of = [&](auto columns) {
    constexpr int kColumns = decltype(columns)::value;
    return run(fused ? conv_sm90_fprop_kernel<T, kColumns, true>
                     : conv_sm90_fprop_kernel<T, kColumns, false>,
               columns);
  };
  return g.small_c > 64 ? of(std::integral_constant<int, 128>{})
                        : of(std::integral_constant<int, 64>{});
}

}  // namespace

template <typename T>
bool conv_sm90_fprop_serves(const ConvGeometry& g, const T* large, const T* weight, const T* small,
                            const ConvPrologue& prologue, bool fused) {
  // A block is one piece of the sums; the workspace has room for one piece per 64 pixels.
  const int64_t room = ceil_div(g.batch * g.small_h * g.small_w, kSummedRows);
  const bool is_roomy = !fused || pieces_of(g) <= room;
  return fits_halo(g, small, weight, large, prologue) && is_roomy &&
         with_columns<T>(g, fused,
                         [](auto kernel, auto) { return simt::runs_hopper(kernel, kThreads); });
}

template <typename T>
cudaError_t launch_conv_sm90_fprop(const ConvGeometry& g, const T* large, const T* weight, T* small,
                                   const ConvPrologue& prologue, const ConvEpilogue& epilogue,
                                   bool fused, cudaStream_t stream) {
  return with_columns<T>(g, fused, [&](auto kernel, auto columns) {
    constexpr int kColumns = decltype(columns)::value;
    simt::TensorMap map;
    const cudaError_t status = make_tap_map(&map, g, weight, kDepth, kColumns);
    if (status != cudaSuccess) return status;
    dim3 grid;
    if (!grid_of(pieces_of(g) * ceil_div(g.small_c, kColumns), &grid)) return cudaErrorInvalidValue;
    return simt::launch(kernel, grid, kThreads, Shape<kColumns>::Stages::kSharedBytes, stream, map,
                        g, large, small, prologue, epilogue);
  });
}

#define GENIMG_INSTANTIATE(T)                                                                    \
  template bool conv_sm90_fprop_serves<T>(const ConvGeometry&, const T*, const T*, const T*,     \
                                          const ConvPrologue&, bool);                            \
  template cudaError_t launch_conv_sm90_fprop<T>(const ConvGeometry&, const T*, const T*, T*,    \
                                                 const ConvPrologue&, const ConvEpilogue&, bool, \
                                                 cudaStream_t);
GENIMG_INSTANTIATE(__half)
GENIMG_INSTANTIATE(__nv_bfloat16)
#undef GENIMG_INSTANTIATE

}  // namespace genimg::cuda
