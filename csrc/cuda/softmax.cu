// Softmax of attention scores with scale, cap, bias and mask, a block per row. Keys that a row does not see are never
// read, which halves the traffic under a causal mask.
#include <cmath>

#include "block.cuh"
#include "cuda_kernels.h"
#include "max_sum.cuh"

namespace trimaran {
namespace {

// This block's row, and the seen part [first, end) of its keys.
struct Row {
  int64_t start;
  int head, query, keys, first, end;

  __device__ __forceinline__ explicit Row(const CudaScores& a) : keys(static_cast<int>(a.keys)) {
    const int64_t at = blockIdx.x, pair = at / a.queries;
    start = at * a.keys;
    query = static_cast<int>(at - pair * a.queries);
    head = static_cast<int>(pair % a.heads);
    const int64_t range = (a.ranges == 1 ? 0 : pair / a.heads * a.queries) + query;
    first = a.first[range] > 0 ? a.first[range] : 0;
    end = a.last[range] < keys ? a.last[range] + 1 : keys;
  }

  __device__ __forceinline__ bool sees(int key) const { return key >= first && key < end; }
  // Where to begin with vectors of N keys.
  template <int N>
  __device__ __forceinline__ int begin() const {
    return first / N * N;
  }
};

// The logits of keys at .. at + N of a row; -inf for those that are not seen.
template <int N, typename T>
__device__ __forceinline__ void logits(const CudaSoftmax<T>& a, const Row& row, int at, Wide<T> (&x)[N]) {
  using W = Wide<T>;
  const W scale = static_cast<W>(a.shape.scale), cap = static_cast<W>(a.shape.cap);
  load(a.scores + row.start + at, x);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    x[k] *= scale;
    if (cap != 0) x[k] = cap * tanh(x[k] / cap);
  }
  if (a.bias != nullptr) {
    W bias[N];
    load(a.bias + ((a.biases == 1 ? 0 : row.head * a.shape.queries) + row.query) * row.keys + at, bias);
#pragma unroll
    for (int k = 0; k < N; ++k) x[k] += bias[k];
  }
  if (a.slopes != nullptr) {
    const W slope = a.slopes[row.head];
#pragma unroll
    for (int k = 0; k < N; ++k) x[k] += slope * static_cast<W>(at + k - row.query);
  }
#pragma unroll
  for (int k = 0; k < N; ++k)
    if (!row.sees(at + k)) x[k] = -kInfinity<W>;
}

template <typename T, int N>
__global__ void softmax_rows(CudaSoftmax<T> a) {
  using W = Wide<T>;
  TRIMARAN_SHARED(W, scratch, kWarps);
  const Row row(a.shape);
  const int lane = threadIdx.x * N, step = blockDim.x * N;
  MaxSum<W> all;
  for (int i = row.begin<N>() + lane; i < row.end; i += step) {
    W x[N];
    logits(a, row, i, x);
    all.include(x);
  }
  all.join_block(scratch);
  const W base = MaxSum<W>::base(all.max), factor = all.sum == 0 ? W(0) : 1 / all.sum;
  for (int i = lane; i < row.keys; i += step) {
    W x[N] = {};
    if (i + N > row.first && i < row.end) {
      logits(a, row, i, x);
#pragma unroll
      for (int k = 0; k < N; ++k) x[k] = row.sees(i + k) ? exp(x[k] - base) * factor : W(0);  // factor may be NaN
    }
    store(x, a.probs + row.start + i);
  }
}

template <typename T, int N>
__global__ void softmax_rows_backward(CudaSoftmaxBackward<T> a) {
  using W = Wide<T>;
  TRIMARAN_SHARED(W, scratch, kWarps);
  const Row row(a.shape);
  const int lane = threadIdx.x * N, step = blockDim.x * N;
  W sum = 0;
  for (int i = row.begin<N>() + lane; i < row.end; i += step) {
    W probs[N], dprobs[N];
    load(a.probs + row.start + i, probs);
    load(a.dprobs + row.start + i, dprobs);
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (row.sees(i + k)) sum += probs[k] * dprobs[k];
  }
  sum = block_sum(sum, scratch);
  const bool capped = a.shape.cap != 0;
  const W scale = static_cast<W>(a.shape.scale), inner = static_cast<W>(capped ? a.shape.scale / a.shape.cap : 0);
  for (int i = lane; i < row.keys; i += step) {
    W dscores[N] = {};
    if (i + N > row.first && i < row.end) {
      W probs[N], dprobs[N], scores[N] = {};
      load(a.probs + row.start + i, probs);
      load(a.dprobs + row.start + i, dprobs);
      if (capped) load(a.scores + row.start + i, scores);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const W bent = capped ? tanh(scores[k] * inner) : W(0);
        if (row.sees(i + k)) dscores[k] = probs[k] * (dprobs[k] - sum) * scale * (1 - bent * bent);
      }
    }
    store(dscores, a.dscores + row.start + i);
  }
}

}  // namespace

template <typename T>
cudaError_t cuda_softmax(const CudaSoftmax<T>& a, cudaStream_t stream) {
  const int64_t rows = a.shape.b * a.shape.heads * a.shape.queries, keys = a.shape.keys;
  if (rows == 0 || keys == 0) return cudaSuccess;
  constexpr int N = kLanes<T>;
  if (vectorised<T>(keys, a.scores, a.bias, a.probs))
    return launch(softmax_rows<T, N>, blocks_for(rows), dim3(threads_for(keys / N)), stream, a);
  return launch(softmax_rows<T, 1>, blocks_for(rows), dim3(threads_for(keys)), stream, a);
}

template <typename T>
cudaError_t cuda_softmax_backward(const CudaSoftmaxBackward<T>& a, cudaStream_t stream) {
  const int64_t rows = a.shape.b * a.shape.heads * a.shape.queries, keys = a.shape.keys;
  if (rows == 0 || keys == 0) return cudaSuccess;
  constexpr int N = kLanes<T>;
  if (vectorised<T>(keys, a.dprobs, a.probs, a.scores, a.dscores))
    return launch(softmax_rows_backward<T, N>, blocks_for(rows), dim3(threads_for(keys / N)), stream, a);
  return launch(softmax_rows_backward<T, 1>, blocks_for(rows), dim3(threads_for(keys)), stream, a);
}

#define TRIMARAN_SOFTMAX(T)                                               \
  template cudaError_t cuda_softmax(const CudaSoftmax<T>&, cudaStream_t); \
  template cudaError_t cuda_softmax_backward(const CudaSoftmaxBackward<T>&, cudaStream_t);
TRIMARAN_SOFTMAX(float)
TRIMARAN_SOFTMAX(double)
TRIMARAN_SOFTMAX(__half)
TRIMARAN_SOFTMAX(__nv_bfloat16)

}  // namespace trimaran
