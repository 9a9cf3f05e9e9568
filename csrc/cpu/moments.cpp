#include "moments.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>

#include <numeric>

namespace genimg {

Moments::Moments(int64_t pieces, int64_t channels)
    : pieces(pieces),
      channels(channels),
      counts(pieces),
      first(pieces * channels),
      second(pieces * channels) {}

void Moments::attach(cpu::Epilogue* epilogue) {
  epilogue->counts = counts.data();
  epilogue->first = first.data();
  epilogue->second = second.data();
}

namespace {

at::Tensor empty_doubles(int64_t size) {
  return at::empty({size}, at::TensorOptions().dtype(at::kDouble));
}

// Calls finish(c, row) for each channel and piece; the pieces of a channel come in order.
template <typename Add>
void over_pieces(const Moments& moments, Add add) {
  const int64_t grain = 1 + 32768 / (moments.pieces + 1);
  at::parallel_for(0, moments.channels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t piece = 0; piece < moments.pieces; ++piece) {
      for (int64_t c = begin; c < end; ++c) add(c, piece, piece * moments.channels + c);
    }
  });
}

}  // namespace

ChannelSums mean_and_squares(const Moments& moments) {
  const double count = std::accumulate(moments.counts.begin(), moments.counts.end(), 0.0);
  ChannelSums sums = {empty_doubles(moments.channels).zero_(),
                      empty_doubles(moments.channels).zero_()};
  double *mean = sums.first.mutable_data_ptr<double>(),
         *squares = sums.second.mutable_data_ptr<double>();
  over_pieces(moments, [&](int64_t c, int64_t piece, int64_t at) {
    mean[c] += moments.first[at] * (moments.counts[piece] / count);
  });
  over_pieces(moments, [&](int64_t c, int64_t piece, int64_t at) {
    const double off = moments.first[at] - mean[c];
    squares[c] += moments.second[at] + moments.counts[piece] * off * off;
  });
  return sums;
}

ChannelSums mean_and_squares(const at::Tensor& image) {
  const at::Tensor wide = image.to(at::kDouble);
  const at::Tensor mean = wide.mean({0, 2, 3}, true);
  return {mean.flatten(), (wide - mean).square().sum({0, 2, 3})};
}

ChannelSums gate_sums(const Moments& moments) {
  ChannelSums sums = {empty_doubles(moments.channels).zero_(),
                      empty_doubles(moments.channels).zero_()};
  double *first = sums.first.mutable_data_ptr<double>(),
         *second = sums.second.mutable_data_ptr<double>();
  over_pieces(moments, [&](int64_t c, int64_t, int64_t at) {
    first[c] += moments.first[at];
    second[c] += moments.second[at];
  });
  return sums;
}

}  // namespace genimg
