// Rotary position embedding in place: a block per token, whose threads share out the pairs of all its heads. Nothing
// but the turned features is moved.
#include "block.cuh"
#include "cuda_kernels.h"

namespace trimaran {
namespace {

// N pairs, where x points at the first feature of the first: second features follow half a head later, or each its own.
template <bool kInterleaved, int N, typename T>
__device__ __forceinline__ void load_pairs(const T* x, int half, Wide<T> (&first)[N], Wide<T> (&second)[N]) {
  if constexpr (kInterleaved && N == 1) {
    first[0] = widen(x[0]);
    second[0] = widen(x[1]);
  } else if constexpr (kInterleaved) {
    Wide<T> both[2 * N];
    load(x, both);
#pragma unroll
    for (int k = 0; k < N; ++k) first[k] = both[2 * k], second[k] = both[2 * k + 1];
  } else {
    load(x, first);
    load(x + half, second);
  }
}

template <bool kInterleaved, int N, typename T>
__device__ __forceinline__ void store_pairs(const Wide<T> (&first)[N], const Wide<T> (&second)[N], T* x, int half) {
  if constexpr (kInterleaved && N == 1) {
    narrow(first[0], x[0]);
    narrow(second[0], x[1]);
  } else if constexpr (kInterleaved) {
    Wide<T> both[2 * N];
#pragma unroll
    for (int k = 0; k < N; ++k) both[2 * k] = first[k], both[2 * k + 1] = second[k];
    store(both, x);
  } else {
    store(first, x);
    store(second, x + half);
  }
}

template <typename T, int N, bool kInterleaved>
__global__ void turn_heads(CudaRope<T> a) {
  using W = Wide<T>;
  const int half = static_cast<int>(a.rotary / 2), vectors = half / N, count = static_cast<int>(a.heads) * vectors;
  const int64_t token = blockIdx.x, row = token % a.period * half;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const int head = i / vectors, pair = (i - head * vectors) * N;
    T* x = a.x + (token * a.all_heads + head) * a.d + (kInterleaved ? 2 * pair : pair);
    W first[N], second[N];
    float cos[N], sin[N];
    load_pairs<kInterleaved>(x, half, first, second);
    load(a.cos + row + pair, cos);
    load(a.sin + row + pair, sin);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const W c = cos[k], s = sin[k] * a.direction, before = first[k];
      first[k] = before * c - second[k] * s;
      second[k] = second[k] * c + before * s;
    }
    store_pairs<kInterleaved>(first, second, x, half);
  }
}

template <typename T, int N>
cudaError_t turn(const CudaRope<T>& a, cudaStream_t stream) {
  const auto kernel = a.interleaved ? turn_heads<T, N, true> : turn_heads<T, N, false>;
  return launch(kernel, blocks_for(a.tokens), dim3(threads_for(a.heads * (a.rotary / 2 / N))), stream, a);
}

}  // namespace

template <typename T>
cudaError_t cuda_rope(const CudaRope<T>& a, cudaStream_t stream) {
  if (a.tokens == 0 || a.heads == 0 || a.rotary == 0) return cudaSuccess;
  return a.d % kLanes<T> == 0 && vectorised<T>(a.rotary / 2, a.x, a.cos, a.sin) ? turn<T, kLanes<T>>(a, stream)
                                                                               : turn<T, 1>(a, stream);
}

template cudaError_t cuda_rope(const CudaRope<float>&, cudaStream_t);
template cudaError_t cuda_rope(const CudaRope<double>&, cudaStream_t);
template cudaError_t cuda_rope(const CudaRope<__half>&, cudaStream_t);
template cudaError_t cuda_rope(const CudaRope<__nv_bfloat16>&, cudaStream_t);

}  // namespace trimaran
