// A C interface, for ctypes, to the launchers with options that no op uses.
#include "conv/dgrad.h"
#include "conv/fprop.h"
#include "conv/wgrad.h"
#include "testing.h"

using bf16 = __nv_bfloat16;
using fp16 = __half;
using fp32 = float;

#define FOR_EACH_DTYPE(X) X(fp32) X(fp16) X(bf16)

namespace {

// The thirteen numbers of the struct, in its order.
genimg::cuda::ConvGeometry conv_geometry(const int64_t* numbers) {
  const auto number = [=](int i) { return static_cast<int>(numbers[i]); };
  return {numbers[0], number(1), number(2), number(3),  number(4),  number(5), number(6),
          number(7),  number(8), number(9), number(10), number(11), number(12)};
}

genimg::cuda::ConvEpilogue conv_epilogue(const float* bias, int64_t activation, float slope) {
  genimg::cuda::ConvEpilogue epilogue;
  epilogue.bias = bias;
  epilogue.activation = static_cast<genimg::cuda::Activation>(activation);
  epilogue.negative_slope = slope;
  return epilogue;
}

genimg::cuda::ConvPrologue conv_prologue(int64_t kind, const void* y, const float* mean,
                                         const float* scale, const float* shift, const float* slope,
                                         float negative_slope) {
  const auto known = static_cast<genimg::cuda::ConvPrologue::Kind>(kind);
  return {known, y, mean, scale, shift, slope, negative_slope};
}

}  // namespace

#define FUSED_CONV(T, direction, from, to)                                                         \
  SIMT_EXPORT int conv_##direction##_fused_##T(                                                    \
      const int64_t* geometry, const T* from, const T* weight, T* to, int64_t tile, int64_t kind,  \
      const T* y, const float* mean, const float* scale, const float* shift, const float* slope,   \
      float negative_slope, const float* bias, const T* gate_y, const float* gate_mean,            \
      const float* gate_scale, const float* gate_shift, float gate_slope, float* scratch,          \
      unsigned* tickets, float eps, int64_t norm, const float* rstd, const float* gamma,           \
      const float* beta, float* first, float* second, float* third, float* fourth, float* fifth) { \
    using namespace genimg::cuda;                                                                  \
    return simt::guarded([=] {                                                                     \
      ConvEpilogue epilogue = conv_epilogue(bias, 0, 0);                                           \
      epilogue.gate_y = gate_y;                                                                    \
      epilogue.gate = {gate_mean, gate_scale, gate_shift};                                         \
      epilogue.gate_slope = gate_slope;                                                            \
      epilogue.sums = {                                                                            \
          scratch,                                                                                 \
          tickets,                                                                                 \
          {eps, gamma, beta, first, second, third, fourth, fifth},                                 \
          {static_cast<NormMode>(norm), rstd, gate_scale, first, second, third, fourth, fifth}};   \
      return launch_conv_##direction(                                                              \
          conv_geometry(geometry), from, weight, to,                                               \
          conv_prologue(kind, y, mean, scale, shift, slope, negative_slope), epilogue,             \
          static_cast<ConvTile>(tile), ConvPrecision::kFloat, nullptr);                            \
    });                                                                                            \
  }

#define CONV(T)                                                                                \
  SIMT_EXPORT int conv_fprop_##T(const int64_t* geometry, const T* large, const T* weight,     \
                                 const float* bias, T* small, int64_t activation, float slope, \
                                 int64_t tile, int64_t precision) {                            \
    return simt::guarded([=] {                                                                 \
      return genimg::cuda::launch_conv_fprop(                                                  \
          conv_geometry(geometry), large, weight, small, {},                                   \
          conv_epilogue(bias, activation, slope), static_cast<genimg::cuda::ConvTile>(tile),   \
          static_cast<genimg::cuda::ConvPrecision>(precision), nullptr);                       \
    });                                                                                        \
  }                                                                                            \
  SIMT_EXPORT int conv_dgrad_##T(const int64_t* geometry, const T* small, const T* weight,     \
                                 const float* bias, T* large, int64_t activation, float slope, \
                                 int64_t tile, int64_t precision) {                            \
    return simt::guarded([=] {                                                                 \
      return genimg::cuda::launch_conv_dgrad(                                                  \
          conv_geometry(geometry), small, weight, large, {},                                   \
          conv_epilogue(bias, activation, slope), static_cast<genimg::cuda::ConvTile>(tile),   \
          static_cast<genimg::cuda::ConvPrecision>(precision), nullptr);                       \
    });                                                                                        \
  }                                                                                            \
  SIMT_EXPORT int conv_wgrad_##T(const int64_t* geometry, const T* small, const T* large,      \
                                 float* scratch, T* grad_weight, int64_t by_channel,           \
                                 int64_t precision) {                                          \
    return simt::guarded([=] {                                                                 \
      return genimg::cuda::launch_conv_wgrad(                                                  \
          conv_geometry(geometry), small, large, scratch, grad_weight, by_channel != 0,        \
          static_cast<genimg::cuda::ConvPrecision>(precision), {}, {}, nullptr);               \
    });                                                                                        \
  }                                                                                            \
  SIMT_EXPORT int64_t conv_wgrad_scratch_##T(const int64_t* geometry) {                        \
    return genimg::cuda::conv_wgrad_scratch<T>(conv_geometry(geometry));                       \
  }
FOR_EACH_DTYPE(CONV)

// wgrad of leaky((small - mean) * scale + shift) and large * scale + (y - mean) * slope + shift,
// whose arrays follow each other.
#define FUSED_CONVS(T)                                                                             \
  FUSED_CONV(T, fprop, large, small)                                                               \
  FUSED_CONV(T, dgrad, small, large)                                                               \
  SIMT_EXPORT int conv_wgrad_fused_##T(                                                            \
      const int64_t* geometry, const T* small, const T* large, float* scratch, T* grad_weight,     \
      const float* mean, const float* scale, const float* shift, float negative_slope, const T* y, \
      const float* large_mean, const float* large_scale, const float* large_shift,                 \
      const float* large_slope) {                                                                  \
    return simt::guarded([=] {                                                                     \
      return genimg::cuda::launch_conv_wgrad(                                                      \
          conv_geometry(geometry), small, large, scratch, grad_weight, false,                      \
          genimg::cuda::ConvPrecision::kFloat,                                                     \
          conv_prologue(1, nullptr, mean, scale, shift, nullptr, negative_slope),                  \
          conv_prologue(2, y, large_mean, large_scale, large_shift, large_slope, 0), nullptr);     \
    });                                                                                            \
  }
FOR_EACH_DTYPE(FUSED_CONVS)

SIMT_EXPORT void conv_sums(const int64_t* geometry, int64_t small, int64_t* room) {
  const auto sums = small != 0 ? genimg::cuda::conv_fprop_sums : genimg::cuda::conv_dgrad_sums;
  const genimg::cuda::ConvSumsWorkspace needed = sums(conv_geometry(geometry));
  room[0] = needed.floats;
  room[1] = needed.tickets;
}
