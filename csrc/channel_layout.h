// Views any tensor as planes of one channel (NCHW) or as pixels of all channels (NHWC).
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "cpu/huge_pages.h"

namespace genimg {

// How a tensor lies in memory: planes of one channel, or pixels of all channels.
struct Layout {
  bool pixels;
  int64_t batch, channels, plane;        // N, C, and H * W
  int64_t batch_stride, channel_stride;  // of planes
  int64_t pixel_stride;                  // of pixels

  int64_t values_per_channel() const { return batch * plane; }
};

inline bool lies_in_pixels(const at::Tensor& x) {
  const int64_t last = x.dim() - 1;
  if (x.dim() == 2) return x.stride(1) == 1;
  if (x.dim() < 4 || x.stride(1) != 1 || x.size(1) == 1) return false;
  int64_t expected = x.stride(last) * x.size(last);
  for (int64_t d = last - 1; d >= 0; --d) {
    if (d == 1) continue;
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

inline bool lies_in_planes(const at::Tensor& x) {
  int64_t expected = 1;
  for (int64_t d = x.dim() - 1; d >= 2; --d) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

struct ChannelView {
  at::Tensor x;
  Layout layout;
  at::MemoryFormat format;  // torch's for x
};

// Views x itself where the kernels can read its strides, else a dense copy.
inline ChannelView channel_view(const at::Tensor& given) {
  const at::MemoryFormat format = given.suggest_memory_format();
  const bool pixels = given.dim() == 2
                          ? lies_in_pixels(given)
                          : format != at::MemoryFormat::Contiguous && given.size(1) > 1;
  const bool served = pixels ? lies_in_pixels(given) : lies_in_planes(given);
  const at::Tensor x =
      served ? given : given.contiguous(pixels ? format : at::MemoryFormat::Contiguous);
  const int64_t batch = x.size(0), channels = x.size(1);
  const int64_t plane = batch * channels > 0 ? x.numel() / (batch * channels) : 0;
  const int64_t pixel_stride = x.dim() == 2 ? x.stride(0) : pixels ? x.stride(x.dim() - 1) : 0;
  return {x, {pixels, batch, channels, plane, x.stride(0), x.stride(1), pixel_stride}, format};
}

// A dense tensor in x's order. Where a size of 1 lets both formats fit, `format` may be contiguous.
inline at::Tensor empty_in(const ChannelView& laid, at::MemoryFormat format) {
  at::Tensor empty = at::empty(laid.x.sizes(), laid.x.options(), format);
  if (empty.is_cpu()) prefer_huge_pages(empty.mutable_data_ptr(), empty.nbytes());
  return empty;
}

inline at::Tensor in_order_of(const ChannelView& laid, const at::Tensor& grad_y) {
  return grad_y.contiguous(laid.format);
}

// Elements of a piece. It is small enough to be read a second time from the cache, and its float
// sums are short.
constexpr int64_t kPiece = 16384;

// A tensor cut into pieces: a stretch of a plane, or a run of pixels.
struct Pieces {
  explicit Pieces(const Layout& layout) : layout(layout) {
    if (layout.pixels) {
      length = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, layout.channels));
      per_line = (layout.values_per_channel() + length - 1) / length;
      count = per_line;
    } else {
      length = kPiece;
      per_line = (layout.plane + length - 1) / length;
      count = layout.batch * layout.channels * per_line;
    }
  }

  int64_t start(int64_t piece) const { return piece % per_line * length; }
  int64_t size(int64_t piece) const {
    const int64_t line = layout.pixels ? layout.values_per_channel() : layout.plane;
    return std::min(length, line - start(piece));
  }
  int64_t channel(int64_t piece) const { return piece / per_line % layout.channels; }
  int64_t image(int64_t piece) const { return piece / per_line / layout.channels; }
  // The offset of a piece in the tensor itself, and in a dense tensor of the same order.
  int64_t offset(int64_t piece) const {
    if (layout.pixels) return start(piece) * layout.pixel_stride;
    return image(piece) * layout.batch_stride + channel(piece) * layout.channel_stride +
           start(piece);
  }
  int64_t dense_offset(int64_t piece) const {
    if (layout.pixels) return start(piece) * layout.channels;
    return (image(piece) * layout.channels + channel(piece)) * layout.plane + start(piece);
  }
  // Where the numbers of a piece begin: one for each of its channels.
  int64_t slot(int64_t piece) const { return layout.pixels ? piece * layout.channels : piece; }
  int64_t slots() const { return layout.pixels ? count * layout.channels : count; }

  // Calls visit(channel, slot, values) for all pieces, always in the same order.
  template <typename Visit>
  void in_order(Visit visit) const {
    for (int64_t piece = 0; piece < count; ++piece) {
      const int64_t values = size(piece);
      if (!layout.pixels) {
        visit(channel(piece), piece, values);
        continue;
      }
      for (int64_t c = 0; c < layout.channels; ++c) visit(c, slot(piece) + c, values);
    }
  }

  // Calls run(piece) on torch's threads.
  template <typename Run>
  void each(Run run) const {
    const int64_t elements = layout.batch * layout.channels * layout.plane;
    const int64_t mean = std::max<int64_t>(1, elements / std::max<int64_t>(1, count));
    at::parallel_for(0, count, std::max<int64_t>(1, kPiece / mean),
                     [&](int64_t first, int64_t last) {
                       for (int64_t piece = first; piece < last; ++piece) run(piece);
                     });
  }

  const Layout layout;
  int64_t length, per_line, count;
};

}  // namespace genimg
