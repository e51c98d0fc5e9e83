// Elements in device memory: widened when loaded, rounded once to nearest even when stored, and moved N at a time in
// pieces of 16 bytes where width and alignment allow.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "wide.h"

namespace trimaran {

template <typename T>
constexpr int kLanes = 16 / sizeof(T);  // elements of a vector

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(double x, double& to) { to = x; }
__device__ __forceinline__ void narrow(float x, __half& to) { to = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void narrow(double x, __half& to) { to = __double2half(x); }
__device__ __forceinline__ void narrow(double x, __nv_bfloat16& to) { to = __double2bfloat16(x); }

// What carries `bytes` of a vector in one instruction.
template <int bytes>
struct PieceOf {
  using type = uint4;
};
template <>
struct PieceOf<8> {
  using type = uint2;
};
template <>
struct PieceOf<4> {
  using type = uint32_t;
};
template <int N, typename T>
using Piece = typename PieceOf<N * sizeof(T)>::type;

template <int N, typename T>
__device__ __forceinline__ void load(const T* from, Wide<T> (&to)[N]) {
  if constexpr (N == 1) {
    to[0] = widen(*from);
  } else {
    constexpr int kEach = sizeof(Piece<N, T>) / sizeof(T);
    static_assert(N % kEach == 0, "whole pieces");
#pragma unroll
    for (int first = 0; first < N; first += kEach) {
      const auto raw = *reinterpret_cast<const Piece<N, T>*>(from + first);
      T lanes[kEach];
      memcpy(static_cast<void*>(lanes), &raw, sizeof raw);
#pragma unroll
      for (int i = 0; i < kEach; ++i) to[first + i] = widen(lanes[i]);
    }
  }
}

template <int N, typename T, typename W>
__device__ __forceinline__ void store(const W (&from)[N], T* to) {
  if constexpr (N == 1) {
    narrow(from[0], *to);
  } else {
    constexpr int kEach = sizeof(Piece<N, T>) / sizeof(T);
    static_assert(N % kEach == 0, "whole pieces");
#pragma unroll
    for (int first = 0; first < N; first += kEach) {
      T lanes[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) narrow(from[first + i], lanes[i]);
      Piece<N, T> raw;
      memcpy(&raw, static_cast<const void*>(lanes), sizeof raw);
      *reinterpret_cast<Piece<N, T>*>(to + first) = raw;
    }
  }
}

// Round to what T holds, but stay wide.
template <typename T>
__device__ __forceinline__ Wide<T> rounded(Wide<T> x) {
  T stored;
  narrow(x, stored);
  return widen(stored);
}

// Whether rows of `width` elements of T at all of these addresses (nullptr: not used) can be moved by vectors.
template <typename T, typename... Pointers>
bool vectorised(int64_t width, Pointers... pointers) {
  const uintptr_t addresses = (uintptr_t{0} | ... | reinterpret_cast<uintptr_t>(pointers));
  return width % kLanes<T> == 0 && addresses % 16 == 0;
}

}  // namespace trimaran
