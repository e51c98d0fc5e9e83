// The non-linearities of feed-forward layers and their slopes. NaN goes through all of them.
#pragma once

#include <cmath>

#include "cuda_kernels.h"

namespace trimaran {

// Twice the argument of the tanh that stands for erf in GELU, so that 1 + tanh(u / 2) = 2 sigmoid(u) serves.
template <typename W>
__device__ __forceinline__ W tanh_argument(W x) {
  return W(1.5957691216057308) * x * (1 + W(0.044715) * x * x);
}

template <typename W>
__device__ __forceinline__ W sigmoid(W x) {
  return 1 / (1 + exp(-x));
}

// Phi(x), without the cancellation of 1 + erf for negative x.
template <typename W>
__device__ __forceinline__ W normal_below(W x) {
  return W(0.5) * erfc(x * W(-0.7071067811865476));
}

template <Curve kind, typename W>
__device__ __forceinline__ W curve(W x) {
  if constexpr (kind == Curve::silu) return x * sigmoid(x);
  if constexpr (kind == Curve::gelu) return x * normal_below(x);
  if constexpr (kind == Curve::gelu_tanh) return x * sigmoid(tanh_argument(x));
  if constexpr (kind == Curve::relu) return x <= 0 ? W(0) : x;
  if constexpr (kind == Curve::squared_relu) return x <= 0 ? W(0) : x * x;
}

// s = sigmoid(x) and s (1 - s), in which 1 - s would cancel for large x.
template <typename W>
struct SigmoidSlope {
  W value, slope;
  __device__ __forceinline__ explicit SigmoidSlope(W x) {
    const W e = exp(x < 0 ? x : -x), larger = 1 / (1 + e);
    value = x < 0 ? e * larger : larger;
    slope = e * larger * larger;
  }
};

template <Curve kind, typename W>
__device__ __forceinline__ W slope(W x) {
  if constexpr (kind == Curve::silu) {
    const SigmoidSlope<W> s(x);
    return s.value + x * s.slope;
  }
  if constexpr (kind == Curve::gelu) {
    return normal_below(x) + x * W(0.3989422804014327) * exp(W(-0.5) * x * x);
  }
  if constexpr (kind == Curve::gelu_tanh) {
    const W near = x > 30 ? W(30) : x < -30 ? W(-30) : x;  // beyond, x^3 overflows and the slope is 0 or 1
    const SigmoidSlope<W> s(tanh_argument(near));
    return s.value + near * s.slope * W(1.5957691216057308) * (1 + W(0.134145) * near * near);
  }
  if constexpr (kind == Curve::relu) return x <= 0 ? W(0) : W(1);
  if constexpr (kind == Curve::squared_relu) return x <= 0 ? W(0) : 2 * x;
}

}  // namespace trimaran
