// fprop: a row of the matrix product is a pixel of the small image, a column is one of its
// channels; the sum is over the taps and the channels of the large image.
#include "fprop.h"

#include "gather.h"
#include "launch.h"
#include "sm90_fprop.h"

namespace genimg::cuda {
namespace {

template <typename T, typename Product, bool kWide, bool kFused>
struct FpropLoader {
  using A = typename Product::A;
  using B = typename Product::B;
  using Images = Filler<A, Product::kThreads, kWide, T, Prologue<T, kFused>>;
  using Weights = Filler<B, Product::kThreads, kWide, T, NoPrologue<T>>;

  Images images;
  Weights weights;
  TapSource<T, Images::kPasses, true> image;
  MatrixSource<T> weight;
  Digits step;

  __device__ FpropLoader(const ConvGeometry& g, const T* large, const T* weight_ptr,
                         const ConvPrologue& prologue, int64_t first_row, int64_t first_column)
      : images(prologue), weights({}) {
    image.base = large;
    image.height = g.large_h;
    image.width = g.large_w;
    image.taps_h = g.kernel_h;
    image.taps = {g.large_c, g.kernel_w};
    image.tap = digits_of(Images::first_column(), image.taps);
    step = digits_of(A::kColumns, image.taps);
#pragma unroll
    for (int pass = 0; pass < Images::kPasses; ++pass) {
      const int64_t row = first_row + Images::first_row() + pass * Images::kStep;
      const Digits pixel = digits_of(row, {g.small_w, g.small_h});
      image.set_row(pass, g.batch, pixel, pixel.middle * g.stride_h - g.pad_h,
                    pixel.low * g.stride_w - g.pad_w);
    }
    weight = {weight_ptr,
              g.small_c,
              static_cast<int64_t>(g.kernel_h) * g.kernel_w * g.large_c,
              first_column + Weights::first_row(),
              Weights::first_column(),
              Weights::kStep};
  }

  __device__ __forceinline__ void fetch(A a, B b) {
    images.fetch(a, image);
    weights.fetch(b, weight);
    image.tap.add(step, image.taps);
    weight.column += B::kColumns;
  }
  __device__ __forceinline__ void deposit(A a, B b) const {
    images.deposit(a);
    weights.deposit(b);
  }
};

template <typename T, typename Config, bool kWide, bool kFused>
__global__ void __launch_bounds__(Config::template Product<false, false>::kThreads,
                                  kResident<Config, kFused>)
    conv_fprop_kernel(ConvGeometry g, const T* large, const T* weight, T* small,
                      ConvPrologue prologue, ConvEpilogue epilogue) {
  using Product = typename Config::template Product<false, false>;
  SIMT_DYN_SHARED(T, shared);
  // Neighbouring blocks read the same pixels.
  const unsigned tiles = (g.small_c + Config::kN - 1) / Config::kN;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / tiles) * Config::kM;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x % tiles) * Config::kN;

  FpropLoader<T, Product, kWide, kFused> loader(g, large, weight, prologue, first_row,
                                                first_column);
  Product product;
  const int64_t depth = loader.weight.columns;
  multiply<Config::kStages>(shared, product, loader, (depth + Config::kK - 1) / Config::kK);

  const Tile<float, Config::kM, Config::kN> result{reinterpret_cast<float*>(shared)};
  stage_result(result, product);
  const int64_t rows = g.batch * g.small_h * g.small_w - first_row;
  const auto offset_of = [&](int row) {
    return row < rows ? (first_row + row) * g.small_c : int64_t{-1};
  };
  write_result<Product::kThreads, kWide>(result, small, first_column, g.small_c,
                                         Epilogue<T, kFused>{epilogue}, offset_of);
  if constexpr (kFused) {
    if (epilogue.sums.scratch == nullptr) return;
    add_sums<Product::kThreads, T>(result, static_cast<int>(rows < Config::kM ? rows : Config::kM),
                                   epilogue, first_column, g.small_c, blockIdx.x % tiles,
                                   blockIdx.x / tiles, gridDim.x / tiles, offset_of);
  }
}

template <typename T, bool kFused>
cudaError_t launch(const ConvGeometry& g, const T* large, const T* weight, T* small,
                   const ConvPrologue& prologue, const ConvEpilogue& epilogue, ConvTile tile,
                   ConvPrecision precision, cudaStream_t stream) {
  constexpr int kLanes = Vector<T>::kSize;
  const bool wide = g.large_c % kLanes == 0 && g.small_c % kLanes == 0 &&
                    are_aligned(large, weight, small) && are_aligned(prologue);
  const int64_t rows = g.batch * g.small_h * g.small_w;
  return with_tile<T, kFused>(
      choose_tile<T>(tile, rows, g.small_c, 1, wide, kFused), precision, wide,
      [&](auto config, auto is_wide) {
        using Config = decltype(config);
        using Product = typename Config::template Product<false, false>;
        dim3 grid;
        if (!grid_of(ceil_div(rows, Config::kM) * ceil_div(g.small_c, Config::kN), &grid)) {
          return cudaErrorInvalidValue;
        }
        return simt::launch(conv_fprop_kernel<T, Config, decltype(is_wide)::value, kFused>, grid,
                            Product::kThreads, shared_bytes<T, Config, Product>(), stream, g, large,
                            weight, small, prologue, epilogue);
      });
}

}  // namespace

template <typename T>
cudaError_t launch_conv_fprop(const ConvGeometry& geometry, const T* large, const T* weight,
                              T* small, const ConvPrologue& prologue, const ConvEpilogue& epilogue,
                              ConvTile tile, ConvPrecision precision, cudaStream_t stream) {
  const bool plain = prologue.kind == ConvPrologue::kNone && is_plain(epilogue);
  if constexpr (sizeof(T) == 2) {
    // kAuto does not select kHalo, not even on Hopper, until it has run on a GPU.
    if (tile == ConvTile::kHalo &&
        conv_sm90_fprop_serves(geometry, large, weight, small, prologue, !plain)) {
      return launch_conv_sm90_fprop(geometry, large, weight, small, prologue, epilogue, !plain,
                                    stream);
    }
  }
  if (tile == ConvTile::kHalo) tile = ConvTile::kAuto;
  return (plain ? launch<T, false> : launch<T, true>)(geometry, large, weight, small, prologue,
                                                      epilogue, tile, precision, stream);
}

ConvSumsWorkspace conv_fprop_sums(const ConvGeometry& g) {
  return sums_workspace(ceil_div(g.batch * g.small_h * g.small_w, kSummedRows), g.small_c);
}

#define GENIMG_INSTANTIATE(T)                                                                   \
  template cudaError_t launch_conv_fprop<T>(const ConvGeometry&, const T*, const T*, T*,        \
                                            const ConvPrologue&, const ConvEpilogue&, ConvTile, \
                                            ConvPrecision, cudaStream_t);
GENIMG_INSTANTIATE(float)
GENIMG_INSTANTIATE(__half)
GENIMG_INSTANTIATE(__nv_bfloat16)
#undef GENIMG_INSTANTIATE

}  // namespace genimg::cuda
