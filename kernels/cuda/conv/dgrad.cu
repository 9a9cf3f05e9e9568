// dgrad by phases. A phase is the set of pixels of the large image with the same remainder by the
// stride: they meet the same taps, and read the small image as a convolution of stride 1 does. A
// row of the matrix product is such a pixel, a column is one of its channels; the sum is over the
// phase's taps and the channels of the small image.
#include "dgrad.h"

#include "dgrad_few.h"
#include "gather.h"
#include "launch.h"
#include "sm90_dgrad.h"

namespace genimg::cuda {
namespace {

// A phase along one axis: pixels remainder + stride * i, for i in [0, pixels), meet taps
// first + stride * t of pixels i + shift - t of the small image.
struct Phase {
  int remainder, pixels, first, taps, shift;

  __device__ Phase(int remainder, int stride, int pad, int kernel, int size)
      : remainder(remainder),
        pixels(remainder < size ? (size - remainder + stride - 1) / stride : 0),
        first((remainder + pad) % stride),
        taps(first < kernel ? (kernel - first + stride - 1) / stride : 0),
        shift((remainder + pad - first) / stride) {}
};

template <typename T, typename Product, bool kWide, bool kFused>
struct DgradLoader {
  using A = typename Product::A;
  using B = typename Product::B;
  using Images = Filler<A, Product::kThreads, kWide, T, Prologue<T, kFused>>;
  using Weights = Filler<B, Product::kThreads, kWide, T, NoPrologue<T>>;

  Images images;
  Weights weights;
  TapSource<T, Images::kPasses, false> image;
  PhaseWeightSource<T, Weights::kPasses> weight;
  Digits step;

  __device__ DgradLoader(const ConvGeometry& g, const Phase& h, const Phase& w, const T* small,
                         const T* weight_ptr, const ConvPrologue& prologue, int64_t first_row,
                         int first_column)
      : images(prologue), weights({}) {
    image.base = small;
    image.height = g.small_h;
    image.width = g.small_w;
    image.taps_h = h.taps;
    image.taps = {g.small_c, w.taps};
    image.tap = digits_of(Images::first_column(), image.taps);
    step = digits_of(A::kColumns, image.taps);
#pragma unroll
    for (int pass = 0; pass < Images::kPasses; ++pass) {
      const int64_t row = first_row + Images::first_row() + pass * Images::kStep;
      const Digits pixel = digits_of(row, {w.pixels, h.pixels});
      image.set_row(pass, g.batch, pixel, pixel.middle + h.shift, pixel.low + w.shift);
    }
    weight.base = weight_ptr;
    weight.kernel_h = g.kernel_h;
    weight.kernel_w = g.kernel_w;
    weight.large_c = g.large_c;
    weight.column = first_column + Weights::first_column();
    weight.first_h = h.first;
    weight.first_w = w.first;
    weight.stride_h = g.stride_h;
    weight.stride_w = g.stride_w;
    weight.taps_h = h.taps;
    weight.taps = image.taps;
#pragma unroll
    for (int pass = 0; pass < Weights::kPasses; ++pass) {
      weight.tap[pass] = digits_of(Weights::first_row() + pass * Weights::kStep, weight.taps);
    }
  }

  __device__ __forceinline__ void fetch(A a, B b) {
    images.fetch(a, image);
    weights.fetch(b, weight);
    image.tap.add(step, image.taps);
#pragma unroll
    for (int pass = 0; pass < Weights::kPasses; ++pass) weight.tap[pass].add(step, weight.taps);
  }
  __device__ __forceinline__ void deposit(A a, B b) const {
    images.deposit(a);
    weights.deposit(b);
  }
};

template <typename T, typename Config, bool kWide, bool kFused>
__global__ void __launch_bounds__(Config::template Product<false, true>::kThreads, 1)
    conv_dgrad_kernel(ConvGeometry g, const T* small, const T* weight, T* large,
                      ConvPrologue prologue, ConvEpilogue epilogue) {
  using Product = typename Config::template Product<false, true>;
  SIMT_DYN_SHARED(T, shared);
  SIMT_SHARED(int64_t, offsets, [Config::kM]);
  // Neighbouring blocks read the same pixels, for other channels and in other phases.
  const unsigned tiles = (g.large_c + Config::kN - 1) / Config::kN;
  const unsigned phase = blockIdx.x / tiles % (g.stride_h * g.stride_w);
  const int64_t first_row =
      static_cast<int64_t>(blockIdx.x / tiles / (g.stride_h * g.stride_w)) * Config::kM;
  const int first_column = static_cast<int>(blockIdx.x % tiles) * Config::kN;
  const Phase h(static_cast<int>(phase) / g.stride_w, g.stride_h, g.pad_h, g.kernel_h, g.large_h);
  const Phase w(static_cast<int>(phase) % g.stride_w, g.stride_w, g.pad_w, g.kernel_w, g.large_w);
  const int64_t rows = g.batch * h.pixels * w.pixels;
  // The first phases have the most pixels. If the blocks count arrivals, every block must arrive.
  const bool has_rows = first_row < rows, waits = kFused && epilogue.sums.scratch != nullptr;
  if (!has_rows && !waits) return;

  // A phase without taps loads nothing, and its digits have no radix.
  Product product;
  const int64_t depth = static_cast<int64_t>(h.taps) * w.taps * g.small_c;
  if (depth > 0 && has_rows) {
    DgradLoader<T, Product, kWide, kFused> loader(g, h, w, small, weight, prologue, first_row,
                                                  first_column);
    multiply<Config::kStages>(shared, product, loader, (depth + Config::kK - 1) / Config::kK);
  }

  for (int row = static_cast<int>(threadIdx.x); row < Config::kM; row += Product::kThreads) {
    offsets[row] = -1;
    if (first_row + row >= rows) continue;
    const Digits pixel = digits_of(first_row + row, {w.pixels, h.pixels});
    const int64_t y = h.remainder + static_cast<int64_t>(g.stride_h) * pixel.middle;
    const int64_t x = w.remainder + static_cast<int64_t>(g.stride_w) * pixel.low;
    offsets[row] = ((pixel.high * static_cast<int64_t>(g.large_h) + y) * g.large_w + x) * g.large_c;
  }
  const Tile<float, Config::kM, Config::kN> result{reinterpret_cast<float*>(shared)};
  stage_result(result, product);
  const auto offset_of = [&](int row) { return offsets[row]; };
  write_result<Product::kThreads, kWide>(result, large, first_column, g.large_c,
                                         Epilogue<T, kFused>{epilogue}, offset_of);
  if constexpr (kFused) {
    if (!waits) return;
    const int64_t here = has_rows ? rows - first_row : 0;
    add_sums<Product::kThreads, T>(result, static_cast<int>(here < Config::kM ? here : Config::kM),
                                   epilogue, first_column, g.large_c, blockIdx.x % tiles,
                                   blockIdx.x / tiles, gridDim.x / tiles, offset_of);
  }
}

// One pixel meets every tap once, whatever the stride. With this stride each tap has a phase of its
// own, and no block visits taps that miss the image.
ConvGeometry separated(ConvGeometry g) {
  constexpr int kMaxPhases = 32;
  if (g.small_h == 1 && g.large_h <= kMaxPhases) g.stride_h = g.large_h;
  if (g.small_w == 1 && g.large_w <= kMaxPhases) g.stride_w = g.large_w;
  return g;
}

int64_t phase_rows(const ConvGeometry& g) {
  return g.batch * ceil_div(g.large_h, g.stride_h) * ceil_div(g.large_w, g.stride_w);
}

template <typename T, bool kFused>
cudaError_t launch(const ConvGeometry& g, const T* small, const T* weight, T* large,
                   const ConvPrologue& prologue, const ConvEpilogue& epilogue, ConvTile tile,
                   ConvPrecision precision, cudaStream_t stream) {
  constexpr int kLanes = Vector<T>::kSize;
  const bool wide = g.large_c % kLanes == 0 && g.small_c % kLanes == 0 &&
                    are_aligned(large, weight, small) && are_aligned(prologue);
  const int64_t rows = phase_rows(g);
  const int64_t phases = int64_t{g.stride_h} * g.stride_w;
  return with_tile<T, kFused>(
      choose_tile<T>(tile, rows, g.large_c, phases, wide, kFused), precision, wide,
      [&](auto config, auto is_wide) {
        using Config = decltype(config);
        using Product = typename Config::template Product<false, true>;
        const int64_t blocks =
            ceil_div(rows, Config::kM) * phases * ceil_div(g.large_c, Config::kN);
        dim3 grid;
        if (!grid_of(blocks, &grid)) return cudaErrorInvalidValue;
        return simt::launch(conv_dgrad_kernel<T, Config, decltype(is_wide)::value, kFused>, grid,
                            Product::kThreads, shared_bytes<T, Config, Product>(), stream, g, small,
                            weight, large, prologue, epilogue);
      });
}

}  // namespace

template <typename T>
cudaError_t launch_conv_dgrad(const ConvGeometry& geometry, const T* small, const T* weight,
                              T* large, const ConvPrologue& prologue, const ConvEpilogue& epilogue,
                              ConvTile tile, ConvPrecision precision, cudaStream_t stream) {
  const bool plain = prologue.kind == ConvPrologue::kNone && is_plain(epilogue);
  if constexpr (sizeof(T) == 2) {
    // kAuto does not select kHalo, not even on Hopper, until it has run on a GPU.
    if (tile == ConvTile::kHalo &&
        conv_sm90_dgrad_serves(geometry, small, weight, large, prologue, !plain)) {
      return launch_conv_sm90_dgrad(geometry, small, weight, large, prologue, epilogue, !plain,
                                    stream);
    }
  }
  if (tile == ConvTile::kHalo) tile = ConvTile::kAuto;
  if constexpr (sizeof(T) == 2) {
    if (is_plain(epilogue) && tile == ConvTile::kAuto && conv_dgrad_few_serves(geometry)) {
      return launch_conv_dgrad_few(geometry, small, weight, large, prologue, epilogue, stream);
    }
  }
  return (plain ? launch<T, false> : launch<T, true>)(separated(geometry), small, weight, large,
                                                      prologue, epilogue, tile, precision, stream);
}

ConvSumsWorkspace conv_dgrad_sums(const ConvGeometry& geometry) {
  const ConvGeometry g = separated(geometry);
  const int64_t phases = int64_t{g.stride_h} * g.stride_w;
  return sums_workspace(ceil_div(phase_rows(g), kSummedRows) * phases, g.large_c);
}

#define GENIMG_INSTANTIATE(T)                                                                   \
  template cudaError_t launch_conv_dgrad<T>(const ConvGeometry&, const T*, const T*, T*,        \
                                            const ConvPrologue&, const ConvEpilogue&, ConvTile, \
                                            ConvPrecision, cudaStream_t);
GENIMG_INSTANTIATE(float)
GENIMG_INSTANTIATE(__half)
GENIMG_INSTANTIATE(__nv_bfloat16)
#undef GENIMG_INSTANTIATE

}  // namespace genimg::cuda
