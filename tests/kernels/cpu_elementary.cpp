// The largest error of each function of kernels/cpu/elementary.h, in units in the last place of the
// true value, over floats spread evenly through the range that the header states.
#include "../../kernels/cpu/elementary.h"

#include <cmath>
#include <cstdio>
#include <initializer_list>

namespace isa = genimg::cpu::GENIMG_ISA;

double ulps(float got, double exact) {
  const float nearest = static_cast<float>(exact);
  const float magnitude = std::fabs(nearest);
  const double unit = static_cast<double>(std::nextafter(magnitude, INFINITY)) - magnitude;
  return std::fabs(got - exact) / unit;
}

template <typename Function, typename Exact>
void measure(const char* name, float low, float high, Function function, Exact exact) {
  double worst = 0;
  float at = 0;
  const uint32_t step = 1009;  // floats of one sign are in the order of their bits
  for (uint32_t bits = isa::to_bits(low); bits <= isa::to_bits(high); bits += step) {
    const float x = isa::from_bits(bits);
    for (const float signed_x : {x, -x}) {
      const double error = ulps(function(signed_x), exact(static_cast<double>(signed_x)));
      if (!(error <= worst)) {
        worst = error;
        at = signed_x;
      }
    }
  }
  std::printf("%s %.2f %.9g\n", name, worst, at);
}

int main() {
  const double two_pi = 6.283185307179586476925;
  const float tiny = 1e-18f;  // below, squares are denormal
  measure("exp_of", tiny, 80, isa::exp_of, [](double x) { return std::exp(x); });
  measure("expm1_of", tiny, 80, isa::expm1_of, [](double x) { return std::expm1(x); });
  measure("expm1_minus_x", tiny, 80, isa::expm1_minus_x, [](double x) {
    long double term = x, sum = 0;  // the series, where expm1(x) - x cancels
    if (std::fabs(x) > 1) return std::expm1(x) - x;
    for (int n = 2; n < 24; ++n) sum += term *= static_cast<long double>(x) / n;
    return static_cast<double>(sum);
  });
  measure(
      "log_of", 1.2e-38f, 3e38f, [](float x) { return isa::log_of(std::fabs(x)); },
      [](double x) { return std::log(std::fabs(x)); });
  const auto turn = [](float x, bool cosine) {
    float s, c;
    isa::sincos_turn(std::fabs(x), &s, &c);
    return cosine ? c : s;
  };
  // A quarter turn's remainder, exactly; sine and cosine of it, exchanged by quadrant.
  const auto exact_turn = [two_pi](double u, bool cosine) {
    const double quarters = 4 * std::fabs(u);
    const double n = std::nearbyint(quarters);
    const double x = (quarters - n) * (two_pi / 4);
    const int quadrant = static_cast<int>(n) + (cosine ? 1 : 0);
    const double value = quadrant & 1 ? std::cos(x) : std::sin(x);
    return quadrant & 2 ? -value : value;
  };
  measure(
      "sine", tiny, 1, [&](float x) { return turn(x, false); },
      [&](double x) { return exact_turn(x, false); });
  measure(
      "cosine", tiny, 1, [&](float x) { return turn(x, true); },
      [&](double x) { return exact_turn(x, true); });
}
