// Operators that change what they do if their number is genimg_mutant; see mutants.py.
#pragma once

#include <cstdint>
#include <type_traits>

extern "C" {
// 0: no operator is changed.
[[gnu::visibility("default")]] inline int genimg_mutant = 0;
// Whether the place of a mutant was executed.
[[gnu::visibility("default")]] inline char genimg_reached[1 << 14] = {};
// How often a kernel refused its input, so that PyTorch ran the call.
[[gnu::visibility("default")]] inline int genimg_refusals = 0;
}

#define __atomic_store_n(to, value, order) (++genimg_refusals, __atomic_store_n(to, value, order))

namespace gm {

[[gnu::noinline]] inline bool is(int number) {
  genimg_reached[number] = 1;
  return genimg_mutant == number;
}

// a + b is written a +Op(1)+ b: the left operator makes a Left of a and Op, the right one the
// value.
struct Op {
  explicit Op(int number, int64_t step = 0) : number(number), step(step) {}
  int number;
  int64_t step;  // of a loop whose condition this is, or 0
};

template <typename A>
struct Left {
  A a;
  Op op;
};

template <typename B>
struct Right {
  B b;
  Op op;
};

#define GM_BINARY(sign, changed)                                   \
  template <typename A>                                            \
  inline Left<A> operator sign(A a, Op op) { \
    return {a, op};                                                \
  }                                                                \
  template <typename A, typename B>                                \
  inline auto operator sign(Left<A> left, B b) { \
    const A a = left.a;                                            \
    if (is(left.op.number)) return static_cast<decltype(a sign b)>(changed); \
    return a sign b;                                               \
  }

template <typename A, typename B>
inline auto divided(A a, B b) {
  if constexpr (std::is_integral_v<A> && std::is_integral_v<B>) {
    return b == 0 ? 0 : a / b;
  } else {
    return a * b;
  }
}

template <typename A, typename B>
inline auto remainder(A a, B b) {
  if constexpr (std::is_integral_v<A> && std::is_integral_v<B>) {
    return a % b;
  } else {
    return a * b;
  }
}

// The counter of a loop, a step further.
template <typename A>
inline A further(A a, int64_t step) {
  if constexpr (std::is_integral_v<A>) a += step;
  return a;
}

GM_BINARY(+, a - b)
GM_BINARY(-, a + b)
GM_BINARY(/, remainder(a, b))
GM_BINARY(%, divided(a, b))
GM_BINARY(>, a >= b)
GM_BINARY(>=, a > b)
GM_BINARY(==, a != b)
GM_BINARY(!=, a == b)
GM_BINARY(<, left.op.step ? further(a, left.op.step) < b : a <= b)
GM_BINARY(<=, left.op.step ? further(a, left.op.step) <= b : a < b)
GM_BINARY(*, a)

// a += b is written a +=Op(1)+= b, which is a += (Op(1) += b).
template <typename B>
inline Right<B> operator+=(Op op, B b) {
  return {b, op};
}
template <typename B>
inline Right<B> operator-=(Op op, B b) {
  return {b, op};
}
template <typename A, typename B>
inline void assign(A& a, const Right<B>& right, bool add) {
  if constexpr (!requires { a = right.b; }) {  // a pointer
    if (!is(right.op.number)) a += add ? right.b : -right.b;
  } else {
    if (is(right.op.number)) {
      a = right.b;
    } else if (add) {
      a += right.b;
    } else {
      a -= right.b;
    }
  }
}
template <typename A, typename B>
inline A& operator+=(A& a, Right<B> right) {
  assign(a, right, true);
  return a;
}
template <typename A, typename B>
inline A& operator-=(A& a, Right<B> right) {
  assign(a, right, false);
  return a;
}

// The first of two numbers is up, the second down.
inline int number(int number, int value) {
  return is(number) ? value + 1 : value > 0 && is(number + 1) ? value - 1 : value;
}
inline float scaled(int number, float value) {
  return is(number) ? 2 * value : value;
}
inline bool flip(int number, bool value) { return is(number) != value; }

template <typename A>
inline A negative(int number, A a) {
  if (is(number)) return a;
  return -a;
}

// Always true, or always false; of vectors, in every element.
template <typename A>
inline auto condition(int number, A a) {
  if constexpr (std::is_arithmetic_v<A> || std::is_pointer_v<A>) {
    return is(number) ? true : is(number + 1) ? false : static_cast<bool>(a);
  } else {
    if (is(number)) return a | ~a;
    if (is(number + 1)) return a & ~a;
    return a;
  }
}
inline bool either(int number, bool a) { return is(number) || a; }
inline bool both(int number, bool a) { return !is(number) && a; }

inline int64_t smaller(int number, int64_t a, int64_t b) {
  return is(number) ? a : is(number + 1) ? b : a < b ? a : b;
}
inline int64_t larger(int number, int64_t a, int64_t b) {
  return is(number) ? a : is(number + 1) ? b : a > b ? a : b;
}

}  // namespace gm
