// wgrad: a row of the matrix product is a channel of the small image, a column is a channel of a
// tap of the large image; the sum is over the pixels of the small image. There are many pixels, and
// few rows and columns, so that each block sums a piece of the pixels; a second kernel adds the
// pieces in order.
#include "wgrad.h"

#include "gather.h"
#include "launch.h"

namespace genimg::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocks = 264;  // two for each multiprocessor of a large GPU
constexpr int64_t kPiece = 256;   // the fewest pixels of a piece
constexpr int64_t kMaxBlocks = 1 << 16;

template <typename T, typename Product, bool kWide, bool kFused>
struct WgradLoader {
  using A = typename Product::A;
  using B = typename Product::B;
  using Smalls = Filler<A, Product::kThreads, kWide, T, Prologue<T, kFused>>;
  using Larges = Filler<B, Product::kThreads, kWide, T, Prologue<T, kFused>>;

  Smalls smalls;
  Larges larges;
  MatrixSource<T> small;
  PatchSource<T, Larges::kPasses> large;
  Radix pixels;
  Digits step;

  __device__ WgradLoader(const ConvGeometry& g, const T* small_ptr, const T* large_ptr,
                         const ConvPrologue& small_prologue, const ConvPrologue& large_prologue,
                         int64_t first_row, int64_t first_column, int64_t first_pixel, int64_t end)
      : smalls(small_prologue), larges(large_prologue), pixels{g.small_w, g.small_h} {
    small = {small_ptr,
             end,
             g.small_c,
             first_pixel + Smalls::first_row(),
             first_row + Smalls::first_column(),
             Smalls::kStep};
    large.base = large_ptr;
    large.height = g.large_h;
    large.width = g.large_w;
    large.stride_h = g.stride_h;
    large.stride_w = g.stride_w;
    large.pad_h = g.pad_h;
    large.pad_w = g.pad_w;
    large.kernel_h = g.kernel_h;
    large.taps = {g.large_c, g.kernel_w};
    large.tap = digits_of(first_column + Larges::first_column(), large.taps);
    large.row = first_pixel + Larges::first_row();
    large.end = end;
    large.step = Larges::kStep;
    step = digits_of(B::kRows, pixels);
#pragma unroll
    for (int pass = 0; pass < Larges::kPasses; ++pass) {
      large.pixel[pass] = digits_of(large.row + pass * Larges::kStep, pixels);
    }
  }

  __device__ __forceinline__ void fetch(A a, B b) {
    smalls.fetch(a, small);
    larges.fetch(b, large);
    small.row += A::kRows;
    large.row += B::kRows;
#pragma unroll
    for (int pass = 0; pass < Larges::kPasses; ++pass) large.pixel[pass].add(step, pixels);
  }
  __device__ __forceinline__ void deposit(A a, B b) const {
    smalls.deposit(a);
    larges.deposit(b);
  }
};

// How the product is split into blocks.
struct Pieces {
  ConvTile tile;
  int64_t count, pixels;  // pieces, and the pixels of one
};

template <typename T, typename Config, bool kWide, bool kFused>
__global__ void __launch_bounds__(Config::template Product<true, true>::kThreads,
                                  kResident<Config, kFused>)
    conv_wgrad_kernel(ConvGeometry g, const T* small, const T* large, float* sums,
                      int64_t piece_pixels, ConvPrologue small_prologue,
                      ConvPrologue large_prologue) {
  using Product = typename Config::template Product<true, true>;
  SIMT_DYN_SHARED(T, shared);
  const int64_t columns = static_cast<int64_t>(g.kernel_h) * g.kernel_w * g.large_c;
  const int64_t tiles = (columns + Config::kN - 1) / Config::kN;
  const int64_t first_row = blockIdx.x / tiles * Config::kM;
  const int64_t first_column = blockIdx.x % tiles * Config::kN;
  const int64_t first_pixel = blockIdx.y * piece_pixels;
  const int64_t all = g.batch * g.small_h * g.small_w;
  const int64_t end = first_pixel + piece_pixels < all ? first_pixel + piece_pixels : all;

  WgradLoader<T, Product, kWide, kFused> loader(g, small, large, small_prologue, large_prologue,
                                                first_row, first_column, first_pixel, end);
  Product product;
  multiply<Config::kStages>(shared, product, loader,
                            (end - first_pixel + Config::kK - 1) / Config::kK);

  float* const out = sums + blockIdx.y * g.small_c * columns;
  product.visit([&](int row, int column, float2 pair) {
    const int64_t m = first_row + row, n = first_column + column;
    if (m >= g.small_c) return;
    if (n < columns) out[m * columns + n] = pair.x;
    if (n + 1 < columns) out[m * columns + n + 1] = pair.y;
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    conv_wgrad_finish_kernel(const float* sums, T* grad_weight, int64_t pieces, int64_t n,
                             Radix taps, bool by_channel) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += step) {
    // In the order of the output: either the reads or the writes are scattered.
    int64_t from = i;
    if (by_channel) {
      const int64_t tap = i % taps.middle, row = i / taps.middle;
      from = (row / taps.low * taps.middle + tap) * taps.low + row % taps.low;
    }
    float sum = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) sum += sums[piece * n + from];
    grad_weight[i] = narrow<T>(sum);
  }
}

template <typename T>
Pieces pieces_of(const ConvGeometry& g) {
  const int64_t columns = int64_t{g.kernel_h} * g.kernel_w * g.large_c;
  const int64_t pixels = g.batch * g.small_h * g.small_w;
  ConvTile tile = ConvTile::k64x64;
  const bool large = g.small_c > 64 && columns > 64 && sizeof(T) < 4;
  if (large && g.small_c % 8 == 0 && g.large_c % 8 == 0) tile = ConvTile::k128x128;
  const int64_t side = tile == ConvTile::k128x128 ? 128 : 64;
  const int64_t blocks = ceil_div(g.small_c, side) * ceil_div(columns, side);
  int64_t count = ceil_div(kBlocks, blocks);
  const int64_t worth = ceil_div(pixels, kPiece);
  count = count < worth ? count : worth;
  const int64_t piece = ceil_div(ceil_div(pixels, count), 32) * 32;
  return {tile, ceil_div(pixels, piece), piece};
}

template <typename T, bool kFused>
cudaError_t launch(const ConvGeometry& g, const T* small, const T* large, float* sums,
                   T* grad_weight, bool by_channel, ConvPrecision precision,
                   const ConvPrologue& small_prologue, const ConvPrologue& large_prologue,
                   cudaStream_t stream) {
  constexpr int kLanes = Vector<T>::kSize;
  const bool wide = g.large_c % kLanes == 0 && g.small_c % kLanes == 0 &&
                    are_aligned(large, small) && are_aligned(small_prologue) &&
                    are_aligned(large_prologue);
  const Pieces pieces = pieces_of<T>(g);
  const int64_t columns = int64_t{g.kernel_h} * g.kernel_w * g.large_c;
  const auto run = [&](auto config, auto is_wide) {
    using Config = decltype(config);
    using Product = typename Config::template Product<true, true>;
    dim3 grid;
    if (!grid_of(ceil_div(g.small_c, Config::kM) * ceil_div(columns, Config::kN), &grid)) {
      return cudaErrorInvalidValue;
    }
    grid.y = static_cast<unsigned>(pieces.count);
    return simt::launch(conv_wgrad_kernel<T, Config, decltype(is_wide)::value, kFused>, grid,
                        Product::kThreads, shared_bytes<T, Config, Product>(), stream, g, small,
                        large, sums, pieces.pixels, small_prologue, large_prologue);
  };
  // Narrow loads limit the speed, so that the large tile would gain nothing.
  const cudaError_t status =
      with_tile<T, true>(wide ? pieces.tile : ConvTile::k64x64, precision, wide, run);
  if (status != cudaSuccess) return status;
  const int64_t n = g.small_c * columns, blocks = ceil_div(n, kThreads);
  return simt::launch(conv_wgrad_finish_kernel<T>,
                      dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)),
                      kThreads, 0, stream, sums, grad_weight, pieces.count, n,
                      Radix{g.large_c, g.kernel_h * g.kernel_w}, by_channel);
}

}  // namespace

template <typename T>
int64_t conv_wgrad_scratch(const ConvGeometry& g) {
  return pieces_of<T>(g).count * g.small_c * g.kernel_h * g.kernel_w * g.large_c;
}

template <typename T>
cudaError_t launch_conv_wgrad(const ConvGeometry& geometry, const T* small, const T* large,
                              float* scratch, T* grad_weight, bool by_channel,
                              ConvPrecision precision, const ConvPrologue& small_prologue,
                              const ConvPrologue& large_prologue, cudaStream_t stream) {
  const bool plain =
      small_prologue.kind == ConvPrologue::kNone && large_prologue.kind == ConvPrologue::kNone;
  return (plain ? launch<T, false> : launch<T, true>)(geometry, small, large, scratch, grad_weight,
                                                      by_channel, precision, small_prologue,
                                                      large_prologue, stream);
}

#define GENIMG_INSTANTIATE(T)                                                                    \
  template int64_t conv_wgrad_scratch<T>(const ConvGeometry&);                                   \
  template cudaError_t launch_conv_wgrad<T>(const ConvGeometry&, const T*, const T*, float*, T*, \
                                            bool, ConvPrecision, const ConvPrologue&,            \
                                            const ConvPrologue&, cudaStream_t);
GENIMG_INSTANTIATE(float)
GENIMG_INSTANTIATE(__half)
GENIMG_INSTANTIATE(__nv_bfloat16)
#undef GENIMG_INSTANTIATE

}  // namespace genimg::cuda
