// dgrad to few channels. Every pixel of the small image is multiplied once by the weight of all
// taps: a row of the matrix product is such a pixel, a column is a channel of a tap. A block has
// the pixels that a patch of the large image meets; each value of the patch is the sum of the
// products of its taps in shared memory. By phases, the columns of a product would be three
// channels, padded to eight.
#include "dgrad_few.h"

#include "gather.h"
#include "launch.h"

namespace genimg::cuda {
namespace {

// The patches along one axis: their size in the large image, their number, and the pixels of the
// small image that one patch meets.
struct Patches {
  int size, count, met;
};

struct FewGrid {
  Patches h, w;
};

template <typename T, typename Product, bool kWide, bool kFused>
struct FewLoader {
  using A = typename Product::A;
  using B = typename Product::B;
  using Images = Filler<A, Product::kThreads, kWide, T, Prologue<T, kFused>>;
  using Weights = Filler<B, Product::kThreads, kWide, T, NoPrologue<T>>;

  Images images;
  Weights weights;
  TapSource<T, Images::kPasses, true> image;
  MatrixSource<T> weight;

  __device__ FewLoader(const ConvGeometry& g, const FewGrid& grid, const T* small,
                       const T* weight_ptr, const ConvPrologue& prologue, int number, int top,
                       int left)
      : images(prologue), weights({}) {
    image.base = small;
    image.height = g.small_h;
    image.width = g.small_w;
    image.taps_h = 1;
    image.taps = {g.small_c, 1};
    image.tap = {Images::first_column(), 0, 0};
    if (image.tap.low >= g.small_c) image.tap.high = 1;  // past the only tap
#pragma unroll
    for (int pass = 0; pass < Images::kPasses; ++pass) {
      const int row = Images::first_row() + pass * Images::kStep;
      const int y = row / grid.w.met, x = row % grid.w.met;
      image.set_row(pass, y < grid.h.met ? g.batch : 0, {x, y, number}, top + y, left + x);
    }
    weight = {weight_ptr,
              g.small_c,
              int64_t{g.kernel_h} * g.kernel_w * g.large_c,
              Weights::first_row(),
              Weights::first_column(),
              Weights::kStep};
  }

  __device__ __forceinline__ void fetch(A a, B b) {
    images.fetch(a, image);
    weights.fetch(b, weight);
    image.tap.low += A::kColumns;
    if (image.tap.low >= image.taps.low) image.tap.high = 1;
    weight.row += B::kRows;
  }
  __device__ __forceinline__ void deposit(A a, B b) const {
    images.deposit(a);
    weights.deposit(b);
  }
};

// The first pixel of the small image that pixel `first` of the large image meets, rounded up.
__device__ __forceinline__ int first_met(int first, int stride, int pad, int kernel) {
  const int above = first + pad - kernel + 1;
  return above >= 0 ? (above + stride - 1) / stride : -(-above / stride);
}

template <typename T, typename Config, bool kWide, bool kFused>
__global__ void __launch_bounds__(Config::template Product<false, true>::kThreads, 1)
    conv_dgrad_few_kernel(ConvGeometry g, FewGrid grid, const T* small, const T* weight, T* large,
                          ConvPrologue prologue, ConvEpilogue epilogue) {
  using Product = typename Config::template Product<false, true>;
  SIMT_DYN_SHARED(T, shared);
  const int patch_x = static_cast<int>(blockIdx.x % grid.w.count);
  const int patch_y = static_cast<int>(blockIdx.x / grid.w.count % grid.h.count);
  const int number = static_cast<int>(blockIdx.x / grid.w.count / grid.h.count);
  const int first_y = patch_y * grid.h.size, first_x = patch_x * grid.w.size;
  const int top = first_met(first_y, g.stride_h, g.pad_h, g.kernel_h);
  const int left = first_met(first_x, g.stride_w, g.pad_w, g.kernel_w);

  FewLoader<T, Product, kWide, kFused> loader(g, grid, small, weight, prologue, number, top, left);
  Product product;
  multiply<Config::kStages>(shared, product, loader, (g.small_c + Config::kK - 1) / Config::kK);

  const Tile<float, Config::kM, Config::kN> result{reinterpret_cast<float*>(shared)};
  stage_result(result, product);
  const BiasActivation finish{epilogue};
  const int row_values = grid.w.size * g.large_c;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < grid.h.size * row_values;
       i += Product::kThreads) {
    const int y = first_y + i / row_values, x = first_x + i % row_values / g.large_c;
    const int c = i % g.large_c;
    if (y >= g.large_h || x >= g.large_w) continue;
    float values[1] = {0};
    for (int kh = (y + g.pad_h) % g.stride_h; kh < g.kernel_h; kh += g.stride_h) {
      const int row = (y + g.pad_h - kh) / g.stride_h - top;
      for (int kw = (x + g.pad_w) % g.stride_w; kw < g.kernel_w; kw += g.stride_w) {
        const int column = (x + g.pad_w - kw) / g.stride_w - left;
        values[0] += *result.at(row * grid.w.met + column, (kh * g.kernel_w + kw) * g.large_c + c);
      }
    }
    finish(values, 0, c, g.large_c);
    const int64_t pixel = (static_cast<int64_t>(number) * g.large_h + y) * g.large_w + x;
    large[pixel * g.large_c + c] = narrow<T>(values[0]);
  }
}

constexpr int kSide = 11;  // pixels that a patch meets along an axis: 121 of the product's 128 rows

// The patches of an axis, no larger than needed; size 0 if none fits.
Patches patches_of(int size, int kernel, int stride) {
  const int largest = ((kSide - 1) * stride - (kernel - 1) + 1) / stride * stride;
  if (largest < stride) return {0, 0, 0};
  const int count = static_cast<int>(ceil_div(size, largest));
  const int each = static_cast<int>(ceil_div(ceil_div(size, count), stride) * stride);
  return {each, static_cast<int>(ceil_div(size, each)), (each - 1 + kernel - 1) / stride + 1};
}

template <typename T, bool kFused>
cudaError_t launch(const ConvGeometry& g, const T* small, const T* weight, T* large,
                   const ConvPrologue& prologue, const ConvEpilogue& epilogue,
                   cudaStream_t stream) {
  using Config = TileConfig<T, ConvTile::k128x64>;
  using Product = typename Config::template Product<false, true>;
  static_assert(kSide * kSide <= Config::kM);
  const FewGrid patches{patches_of(g.large_h, g.kernel_h, g.stride_h),
                        patches_of(g.large_w, g.kernel_w, g.stride_w)};
  dim3 grid;
  if (!grid_of(g.batch * patches.h.count * patches.w.count, &grid)) return cudaErrorInvalidValue;
  constexpr int kLanes = Vector<T>::kSize;
  const bool wide = g.small_c % kLanes == 0 && g.kernel_h * g.kernel_w * g.large_c % kLanes == 0 &&
                    are_aligned(small, weight) && are_aligned(prologue);
  return simt::launch(wide ? conv_dgrad_few_kernel<T, Config, true, kFused>
                           : conv_dgrad_few_kernel<T, Config, false, kFused>,
                      grid, Product::kThreads, shared_bytes<T, Config, Product>(), stream, g,
                      patches, small, weight, large, prologue, epilogue);
}

}  // namespace

bool conv_dgrad_few_serves(const ConvGeometry& g) {
  constexpr int kFewChannels = 8, kColumns = 64;
  return g.large_c <= kFewChannels && g.kernel_h * g.kernel_w * g.large_c <= kColumns &&
         g.batch <= 0x7fffffff && patches_of(g.large_h, g.kernel_h, g.stride_h).size > 0 &&
         patches_of(g.large_w, g.kernel_w, g.stride_w).size > 0;
}

template <typename T>
cudaError_t launch_conv_dgrad_few(const ConvGeometry& g, const T* small, const T* weight, T* large,
                                  const ConvPrologue& prologue, const ConvEpilogue& epilogue,
                                  cudaStream_t stream) {
  const bool plain = prologue.kind == ConvPrologue::kNone;
  return (plain ? launch<T, false> : launch<T, true>)(g, small, weight, large, prologue, epilogue,
                                                      stream);
}

#define GENIMG_INSTANTIATE(T)                                                                \
  template cudaError_t launch_conv_dgrad_few<T>(const ConvGeometry&, const T*, const T*, T*, \
                                                const ConvPrologue&, const ConvEpilogue&,    \
                                                cudaStream_t);
GENIMG_INSTANTIATE(__half)
GENIMG_INSTANTIATE(__nv_bfloat16)
#undef GENIMG_INSTANTIATE

}  // namespace genimg::cuda
