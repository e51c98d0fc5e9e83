// Functions as plain loop bodies that compilers vectorise on any architecture, with and without FMA. NaN stays NaN.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels.h"

namespace trimaran {

// x, or the limit where x is beyond it. Bits are selected, because compilers follow the constants of ?: into the
// arithmetic after it, one path each, and blend the paths at several times the cost.
template <typename T>
TRIMARAN_INLINE T select(bool take, T yes, T no) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  Bits yes_bits, no_bits;
  memcpy(&yes_bits, &yes, sizeof yes);
  memcpy(&no_bits, &no, sizeof no);
  const Bits mask = -static_cast<Bits>(take), bits = (yes_bits & mask) | (no_bits & ~mask);
  memcpy(&yes, &bits, sizeof yes);
  return yes;
}
template <typename T>
TRIMARAN_INLINE T at_most(T limit, T x) {
  return select(x > limit, limit, x);
}
template <typename T>
TRIMARAN_INLINE T at_least(T limit, T x) {
  return select(x < limit, limit, x);
}

// exp(x) within 1.3 ulp where kSmallest <= x <= kLargest; 0 at kZero, infinity at kInfinity, between them either of
// what their neighbours give. Other arguments give nonsense.
template <typename T>
struct ExpRange;
template <>
struct ExpRange<float> {
  static constexpr float kZero = -88, kSmallest = -87, kLargest = 88, kInfinity = 89;
};
template <>
struct ExpRange<double> {
  static constexpr double kZero = -709, kSmallest = -708, kLargest = 709, kInfinity = 710;
};

TRIMARAN_INLINE float exp_in_range(float x) {
  const float n = __builtin_rintf(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts: the first product is exact
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

TRIMARAN_INLINE double exp_in_range(double x) {
  const double n = __builtin_rint(x * 1.4426950408889634);
  const double r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const int64_t bits = static_cast<int64_t>(static_cast<int32_t>(n) + 1023) << 52;
  double scale;
  memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

// exp(x) within 1.3 ulp; the smallest normal number, or the largest, where the result would be beyond.
template <typename T>
TRIMARAN_INLINE T fast_exp(T x) {
  using Range = ExpRange<T>;
  return exp_in_range(at_least(Range::kSmallest, at_most(Range::kLargest, x)));
}

// The same for x that is not above kLargest, NaN included, in fewer instructions. The limit comes from memory: a
// constant would have to be selected by its bits.
extern const float kSmallestExpFloat;
extern const double kSmallestExpDouble;
TRIMARAN_INLINE float exp_below(float x) {
  const float limit = kSmallestExpFloat;
  return exp_in_range(x < limit ? limit : x);
}
TRIMARAN_INLINE double exp_below(double x) {
  const double limit = kSmallestExpDouble;
  return exp_in_range(x < limit ? limit : x);
}

// tanh within 2 ulp: a rational function near 0, where 1 - 2 / (exp(2x) + 1) would lose digits.
template <typename W>
TRIMARAN_INLINE W fast_tanh(W x) {
  const W z = x * x;
  const W p = (W(-9.64399179425052238628e-1) * z - W(9.92877231001918586564e1)) * z - W(1.61468768441708447952e3);
  const W q = ((z + W(1.12811678491632931402e2)) * z + W(2.23548839060100448583e3)) * z + W(4.84406305325125486048e3);
  const W near = x + x * z * (p / q), a = x < 0 ? -x : x;
  const W far = W(1) - W(2) / (fast_exp(a + a) + W(1));
  return a < W(0.625) ? near : (x < 0 ? -far : far);
}

// 1 / (1 + exp(-x)) within 2.5 ulp; 0 where it is below the smallest normal number.
template <typename T>
TRIMARAN_INLINE T fast_sigmoid(T x) {
  using Range = ExpRange<T>;
  return T(1) / (T(1) + exp_in_range(at_least(Range::kSmallest, at_most(Range::kInfinity, -x))));
}

// c0 + c1 x + c2 x^2 + ...
template <typename T>
TRIMARAN_INLINE T polynomial(T, T c0) {
  return c0;
}
template <typename T, typename... C>
TRIMARAN_INLINE T polynomial(T x, T c0, C... more) {
  return polynomial(x, more...) * x + c0;
}

// The standard normal distribution: probability of a number below x, and density at x.
template <typename T>
struct Normal {
  T below, density;
};

// Both within 3 ulp of the larger of the result and 1/2; relative to a small result, rounding x * x / 2 adds as many
// ulp as that is. 0 where exp(-x * x / 2) is below the smallest normal number.
//
// The tail beyond |x| is exp(-x * x / 2) M(|x|) with a smooth M that falls like 1 / x: t P(t) for t = c / (|x| + c), P
// interpolated at Chebyshev's points to 1.2e-8 (float) and 1.2e-17 (double). Unlike 1 + erf, it does not cancel.
TRIMARAN_INLINE float normal_tail_factor(float x) {
  const float t = 4 / (x + 4);
  return t * polynomial(t, 0.0997541828f, 0.0993738123f, 0.096480224f, 0.0675812657f, 0.0992457237f, -0.0104550662f,
                        0.0560126943f, 0.0311430443f, -0.054129511f, 0.0149936323f);
}
TRIMARAN_INLINE double normal_tail_factor(double x) {
  const double t = 5 / (x + 5);
  return t * polynomial(t, 0.0797884560862554296, 0.0797884556815234494, 0.0765969301873554214, 0.0702136054516474373,
                        0.0610253298231080954, 0.0497576391440337441, 0.0378095434923827621, 0.0243155703205615926,
                        0.0212464852800223556, -0.0160966588433325934, 0.0714531992375833725, -0.174543575768109658,
                        0.346765285959422899, -0.569221991155453167, 0.74074201453407472, -0.761636908597073482,
                        0.602006368245491952, -0.348579240675766354, 0.138421567636963666, -0.0332841982544624311,
                        0.00305825357891218845, 0.000487663820319543433, -0.000113795185460943604);
}
template <typename T>
TRIMARAN_INLINE Normal<T> fast_normal(T x) {
  const T size = x < T(0) ? -x : x, power = T(-0.5) * x * x;
  const T bell = exp_in_range(at_least(ExpRange<T>::kZero, power));
  const T tail = bell * normal_tail_factor(size);
  return {x < T(0) ? tail : T(1) - tail, bell * T(0.39894228040143267794)};
}

}  // namespace trimaran
