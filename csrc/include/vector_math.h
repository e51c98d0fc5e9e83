// exp() as a plain loop body that compilers vectorise on any architecture: within 1.3 ulp, with and without FMA.
// Arguments below the smallest normal result are clamped there; NaN stays NaN.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace trimaran {

TRIMARAN_INLINE float fast_exp(float x) {
  x = x > 88.0f ? 88.0f : (x < -87.0f ? -87.0f : x);
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

TRIMARAN_INLINE double fast_exp(double x) {
  x = x > 709.0 ? 709.0 : (x < -708.0 ? -708.0 : x);
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

}  // namespace trimaran
