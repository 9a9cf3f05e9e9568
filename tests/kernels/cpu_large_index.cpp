// Runs the CPU kernels where indices pass 2^31, without that much memory: most of it is mapped and
// never touched. Built and run by test_cpu_large_index.py. Data are small integers, so that results
// are exact.
#include <sys/mman.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../kernels/cpu/batch_norm_act.h"
#include "../../kernels/cpu/conv/dgrad.h"
#include "../../kernels/cpu/conv/fprop.h"
#include "../../kernels/cpu/conv/pack.h"
#include "../../kernels/cpu/conv/wgrad.h"
#include "../../kernels/cpu/leaky_relu.h"
#include "../../kernels/cpu/reparam_kl.h"
#include "../../kernels/cpu/transpose.h"

namespace {

using namespace genimg::cpu;

constexpr int64_t kLarge = int64_t{1} << 31;

void expect(bool condition, const char* what) {
  std::printf("%s: %s\n", condition ? "ok" : "WRONG", what);
  if (!condition) std::exit(1);
}

// Zeros, which use memory only where they are written to.
class Mapped {
 public:
  explicit Mapped(int64_t count) : bytes_(count * static_cast<int64_t>(sizeof(float))) {
    void* found = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) {
      std::puts("SKIP: the system maps no 9 GB");
      std::exit(77);
    }
    madvise(found, bytes_, MADV_NOHUGEPAGE);
    data_ = static_cast<float*>(found);
  }
  ~Mapped() { munmap(data_, bytes_); }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;

  float* at(int64_t index) const { return data_ + index; }

 private:
  size_t bytes_;
  float* data_;
};

float integer(int64_t i) { return static_cast<float>((i * 7 + i / 11) % 5 - 2); }

void fill(float* data, int64_t count) {
  for (int64_t i = 0; i < count; ++i) data[i] = integer(i);
}

bool are_zero(const float* data, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (data[i] != 0) return false;
  }
  return true;
}

// Calls visit(small pixel, large pixel, tap) wherever they meet in one image.
template <typename Visit>
void each_meeting(const ConvGeometry& g, Visit visit) {
  for (int64_t i = 0; i < g.small_h * g.small_w; ++i) {
    for (int64_t tap = 0; tap < g.kernel_h * g.kernel_w; ++tap) {
      const int64_t y = i / g.small_w * g.stride_h - g.pad_h + tap / g.kernel_w;
      const int64_t x = i % g.small_w * g.stride_w - g.pad_w + tap % g.kernel_w;
      if (y < 0 || y >= g.large_h || x < 0 || x >= g.large_w) continue;
      visit(i, y * g.large_w + x, tap);
    }
  }
}

// The last image of a batch in which both images have more than 2^31 elements.
struct LastImage {
  explicit LastImage(const ConvGeometry& geometry)
      : g(geometry),
        taps(g.kernel_h * g.kernel_w),
        small_size(g.small_h * g.small_w * g.small_c),
        large_size(g.large_h * g.large_w * g.large_c),
        weight(g.small_c * g.large_c * taps) {
    const int64_t least = small_size < large_size ? small_size : large_size;
    g.batch = kLarge / least + 3;
    fill(weight.data(), static_cast<int64_t>(weight.size()));
  }

  int64_t small_at() const { return (g.batch - 1) * small_size; }
  int64_t large_at() const { return (g.batch - 1) * large_size; }
  float weight_of(int64_t small, int64_t large, int64_t tap) const {
    return weight[(small * g.large_c + large) * taps + tap];
  }

  ConvGeometry g;
  int64_t taps, small_size, large_size;
  std::vector<float> weight;
};

void check_contraction(const char* name, const LastImage& last, ConvDirection direction) {
  const ConvGeometry& g = last.g;
  const bool up = direction == ConvDirection::dgrad;
  const int64_t in_at = up ? last.small_at() : last.large_at();
  const int64_t out_at = up ? last.large_at() : last.small_at();
  const int64_t in_size = up ? last.small_size : last.large_size;
  const int64_t out_size = up ? last.large_size : last.small_size;
  const Mapped in(in_at + in_size), out(out_at + out_size);
  fill(in.at(in_at), in_size);

  ConvPlan plan;
  baseline::conv_plan(g, direction, true, &plan);
  std::vector<float> packed(plan.packed), scratch(plan.scratch);
  int refused = 0;
  baseline::conv_pack_f32(g, direction, plan.form, WeightOrder::taps_last, last.weight.data(),
                          packed.data(), &refused, 0, plan.packing);
  ConvCall call = {};
  call.geometry = g;
  call.form = plan.form;
  call.prologue.x = in.at(0);
  call.epilogue.out = out.at(0);
  call.packed = packed.data();
  call.weight = last.weight.data();
  call.refused = &refused;
  (up ? baseline::conv_dgrad_f32 : baseline::conv_fprop_f32)(call, scratch.data(), plan.units - 1,
                                                             plan.units);

  std::vector<float> expected(out_size);
  each_meeting(g, [&](int64_t small, int64_t large, int64_t tap) {
    for (int64_t s = 0; s < g.small_c; ++s) {
      for (int64_t l = 0; l < g.large_c; ++l) {
        const float w = last.weight_of(s, l, tap);
        const int64_t at_small = small * g.small_c + s, at_large = large * g.large_c + l;
        if (up) {
          expected[at_large] += *in.at(in_at + at_small) * w;
        } else {
          expected[at_small] += *in.at(in_at + at_large) * w;
        }
      }
    }
  });
  // The last unit may begin within the image.
  int64_t wrong = 0, written = 0;
  for (int64_t i = 0; i < out_size; ++i) {
    const float got = *out.at(out_at + i);
    written += got != 0;
    wrong += got != 0 && got != expected[i];
  }
  expect(!refused && wrong == 0 && written >= 64 && are_zero(out.at(0), 4096), name);
}

void check_wgrad(const char* name, const LastImage& last) {
  const ConvGeometry& g = last.g;
  const Mapped small(last.small_at() + last.small_size), large(last.large_at() + last.large_size);
  fill(small.at(last.small_at()), last.small_size);
  fill(large.at(last.large_at()), last.large_size);
  WgradCall call = {};
  call.geometry = g;
  baseline::conv_wgrad_plan(g, &call.plan);
  std::vector<float> small_values(call.plan.small), large_values(call.plan.large);
  std::vector<float> sums(call.plan.sums), grad(last.weight.size()), expected(grad.size());
  int refused = 0;
  call.small.x = small.at(0);
  call.large.x = large.at(0);
  call.small_values = small_values.data();
  call.large_values = large_values.data();
  call.sums = sums.data();
  call.refused = &refused;
  // All other images are zero, so that the last chunk of each pass is all there is.
  WgradChunk chunk, next;
  for (int64_t number = 0; number < call.plan.chunks; ++number) {
    baseline::conv_wgrad_chunk(g, call.plan, number, &chunk);
    const bool more = number + 1 < call.plan.chunks;
    if (more) baseline::conv_wgrad_chunk(g, call.plan, number + 1, &next);
    if (more && next.pass == chunk.pass) continue;
    baseline::conv_wgrad_load_f32(call, chunk, 0, chunk.used);
    baseline::conv_wgrad_multiply(call, chunk, 0, chunk.products);
  }
  baseline::conv_wgrad_finish_f32(call, grad.data(), false, 0, g.small_c);
  each_meeting(g, [&](int64_t s_pixel, int64_t l_pixel, int64_t tap) {
    for (int64_t s = 0; s < g.small_c; ++s) {
      for (int64_t l = 0; l < g.large_c; ++l) {
        expected[(s * g.large_c + l) * last.taps + tap] +=
            *small.at(last.small_at() + s_pixel * g.small_c + s) *
            *large.at(last.large_at() + l_pixel * g.large_c + l);
      }
    }
  });
  expect(!refused && grad == expected, name);
}

void check_convolutions() {
  const LastImage wide({0, 8, 8, 64, 16, 16, 16, 4, 4, 2, 2, 1, 1});
  check_contraction("dgrad by F(3,2)", wide, ConvDirection::dgrad);
  check_contraction("fprop by F(3,2)", wide, ConvDirection::fprop);
  check_wgrad("wgrad by F(3,2)", wide);
  const LastImage narrow({0, 4, 4, 64, 8, 8, 16, 4, 4, 2, 2, 1, 1});
  check_contraction("dgrad by F(2,2)", narrow, ConvDirection::dgrad);
  check_contraction("fprop by F(2,2)", narrow, ConvDirection::fprop);
  check_wgrad("wgrad by F(2,2)", narrow);
  const LastImage direct({0, 8, 8, 32, 8, 8, 32, 3, 3, 1, 1, 1, 1});
  check_contraction("dgrad, direct", direct, ConvDirection::dgrad);
  check_contraction("fprop, direct", direct, ConvDirection::fprop);
  check_wgrad("wgrad, direct", direct);
  const LastImage few({0, 16, 16, 16, 32, 32, 3, 4, 4, 2, 2, 1, 1});
  check_contraction("dgrad to few channels", few, ConvDirection::dgrad);
  check_contraction("fprop from few channels", few, ConvDirection::fprop);
  check_wgrad("wgrad of few channels", few);
}

void check_transpose() {
  constexpr int64_t kRows = 48, kColumns = 100;
  const int64_t matrices = kLarge / (kRows * kColumns) + 2, at = (matrices - 1) * kRows * kColumns;
  const int64_t pieces = (kColumns + kTransposeColumns - 1) / kTransposeColumns;
  const Mapped from(at + kRows * kColumns), to(at + kRows * kColumns);
  fill(from.at(at), kRows * kColumns);
  baseline::transpose_f32(from.at(0), to.at(0), kRows, kColumns, (matrices - 1) * pieces,
                          matrices * pieces);
  bool same = true;
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t c = 0; c < kColumns; ++c) {
      same = same && *to.at(at + c * kRows + r) == *from.at(at + r * kColumns + c);
    }
  }
  expect(same, "transpose");
}

void check_elementwise() {
  constexpr int64_t kStride = kLarge - 5;
  const Mapped x(2 * kLarge), y(2 * kLarge);
  *x.at(kStride) = -3;
  baseline::leaky_relu_fwd_f32(x.at(0), kStride, y.at(0), kStride, 2, 0.5f);
  expect(*y.at(kStride) == -1.5f, "leaky_relu, strided");

  constexpr int64_t kChannels = 16;
  BatchNormActKernels<float> kernels;
  baseline::batch_norm_act_f32(&kernels);
  float mean[kChannels] = {}, scale[kChannels], shift[kChannels];
  for (int64_t c = 0; c < kChannels; ++c) {
    *x.at(kStride + c) = integer(c);
    scale[c] = 2;
    shift[c] = 1;
  }
  const BatchNormActs op = {mean, scale, shift, 0.5f};
  kernels.pixels_fwd(x.at(0), y.at(0), 2, kChannels, kStride, op);
  std::vector<float> ones(2 * kChannels, 1.0f);
  double sum_dz[kChannels], sum_dz_x[kChannels];
  kernels.pixels_sums(ones.data(), x.at(0), 2, kChannels, kStride, op, sum_dz, sum_dz_x);
  bool right = true;
  for (int64_t c = 0; c < kChannels; ++c) {
    const float z = 2 * integer(c) + 1, dz = z > 0 ? 1 : 0.5f;
    right = right && *y.at(kChannels + c) == dz * z && sum_dz_x[c] == dz * integer(c);
  }
  expect(right, "batch_norm_act, pixels");
}

// The noise of an element depends on its index, also where that passes 2^32.
void check_reparam_kl() {
  constexpr int64_t kSize = 96;
  const int64_t row = 2 * kLarge / kSize + 3, at = row * kSize;
  const Mapped mu(at + kSize), logvar(at + kSize), z(at + kSize), kl(row + 1);
  const Mapped grad_z(at + kSize), grad_kl(row + 1), grad_mu(at + kSize), grad_logvar(at + kSize);
  fill(mu.at(at), kSize);
  for (int64_t i = 0; i < kSize; ++i) *grad_z.at(at + i) = 1;
  baseline::reparam_kl_fwd_f32(mu.at(0), logvar.at(0), 1, 0, z.at(0), kl.at(0), row, row + 1,
                               kSize);
  baseline::reparam_kl_bwd_f32(grad_z.at(0), grad_kl.at(0), mu.at(0), logvar.at(0), 1, 0,
                               grad_mu.at(0), grad_logvar.at(0), row, row + 1, kSize);
  // The index without its upper half.
  const int64_t lost = at - 2 * kLarge, first = lost / kSize * kSize;
  std::vector<float> noise(2 * kSize), zero(4 * kSize), none(4);
  baseline::reparam_kl_fwd_f32(zero.data() - first, zero.data() - first, 1, 0, noise.data() - first,
                               none.data() - first / kSize, first / kSize, first / kSize + 2,
                               kSize);
  double sum = 0;
  int64_t again = 0, odd = 0;
  for (int64_t i = 0; i < kSize; ++i) {
    const float m = *mu.at(at + i), eps = *z.at(at + i) - m;
    sum += 0.5 * m * m;
    again += std::fabs(eps - noise[lost - first + i]) < 1e-3f;
    odd += *grad_mu.at(at + i) != 1 || std::fabs(*grad_logvar.at(at + i) - 0.5f * eps) > 1e-5f;
  }
  expect(*kl.at(row) == static_cast<float>(sum) && odd == 0 && again < 4, "reparam_kl");
}

}  // namespace

int main() {
  check_convolutions();
  check_transpose();
  check_elementwise();
  check_reparam_kl();
}
