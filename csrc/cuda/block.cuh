// Sums and maxima over a warp and over a block. Every thread of a block gets the same bits, whichever order they run
// in. `scratch` is a shared array of kWarps * K numbers that may be used again at once; blocks are whole warps.
#pragma once

#include <cstdint>
#include <limits>

#include "element.cuh"
#include "launch.h"

namespace trimaran {

constexpr int kWarps = 32;  // of a block, at most
constexpr unsigned kEveryLane = 0xffffffffu;

struct Add {
  template <typename W>
  __device__ __forceinline__ W operator()(W a, W b) const {
    return a + b;
  }
};

// NaN is no maximum: it shows itself in the sums that follow.
struct Larger {
  template <typename W>
  __device__ __forceinline__ W operator()(W a, W b) const {
    return b > a ? b : a;
  }
};

template <typename W, typename Join>
__device__ __forceinline__ W warp_join(W x, Join join) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x = join(x, __shfl_xor_sync(kEveryLane, x, distance));
  return x;
}

template <typename W>
__device__ __forceinline__ W warp_sum(W x) {
  return warp_join(x, Add());
}

// Join K numbers of each thread at once.
template <int K, typename W, typename Scratch, typename Join>
__device__ __forceinline__ void block_join(W (&x)[K], Scratch& scratch, Join join) {
#pragma unroll
  for (int k = 0; k < K; ++k) x[k] = warp_join(x[k], join);
  const int warps = blockDim.x / 32;
  if (warps == 1) return;
  __syncthreads();  // others may still read what an earlier call left
  if (threadIdx.x % 32 == 0)
    for (int k = 0; k < K; ++k) scratch[threadIdx.x / 32 * K + k] = x[k];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k) {
    x[k] = scratch[k];
    for (int warp = 1; warp < warps; ++warp) x[k] = join(x[k], static_cast<W>(scratch[warp * K + k]));
  }
}

template <typename W, typename Scratch>
__device__ __forceinline__ W block_sum(W x, Scratch& scratch) {
  W only[1] = {x};
  block_join(only, scratch, Add());
  return only[0];
}

template <typename W, typename Scratch>
__device__ __forceinline__ W block_max(W x, Scratch& scratch) {
  W only[1] = {x};
  block_join(only, scratch, Larger());
  return only[0];
}

// Threads for a row of so many vectors: whole warps, no more than `most`.
inline unsigned threads_for(int64_t vectors, int64_t most = 256) {
  return static_cast<unsigned>(std::min(most, std::max<int64_t>(1, (vectors + 31) / 32) * 32));
}

// A block for each of so many rows. Beyond 2^31 - 1 the launch fails. (Kernels that stride over rows instead would lose
// their vector stores: nvcc 13 splits those inside two nested loops.)
inline dim3 blocks_for(int64_t rows) { return dim3(static_cast<unsigned>(std::min<int64_t>(rows, 0x80000000))); }

}  // namespace trimaran
