// Softmax of attention scores with scale, cap, bias and mask, a block per row. Keys that a row does not see are never
// read, which halves the traffic under a causal mask.
#include <cmath>

#include "block.cuh"
#include "cuda_kernels.h"
#include "max_sum.cuh"

namespace trimaran {
namespace {

// Where a row of scores lies, and how many of its first keys are seen.
struct Row {
  int64_t batch, head, query;
  int keys, seen;
};

__device__ __forceinline__ Row row_of(const CudaAttended& a) {
  const int64_t at = blockIdx.x, query = at % a.queries, pair = at / a.queries;
  int64_t seen = a.keys;
  if (a.lengths != nullptr && a.lengths[pair / a.heads] < seen) seen = a.lengths[pair / a.heads];
  if (a.causal && query + a.offset + 1 < seen) seen = query + a.offset + 1;
  return {pair / a.heads, pair % a.heads, query, static_cast<int>(a.keys), static_cast<int>(seen > 0 ? seen : 0)};
}

// The scores of keys first .. first + N of a row; -inf for those that are not seen.
template <int N, typename T>
__device__ __forceinline__ void scores(const CudaSoftmax<T>& a, const Row& row, int first, Wide<T> (&x)[N]) {
  using W = Wide<T>;
  load(a.x + static_cast<int64_t>(blockIdx.x) * row.keys + first, x);
  const W scale = static_cast<W>(a.scale), cap = static_cast<W>(a.cap);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    x[k] *= scale;
    if (a.cap != 0) x[k] = cap * tanh(x[k] / cap);
  }
  if (a.bias != nullptr) {
    W bias[N];
    load(a.bias + row.batch * a.bias_batch + row.head * a.bias_head + row.query * a.bias_query + first, bias);
#pragma unroll
    for (int k = 0; k < N; ++k) x[k] += bias[k];
  }
  if (a.slopes != nullptr) {
    const W slope = a.slopes[row.head];
    const W away = static_cast<W>(first - row.query - a.seen.offset);
#pragma unroll
    for (int k = 0; k < N; ++k) x[k] += slope * (away + k);
  }
#pragma unroll
  for (int k = 0; k < N; ++k)
    if (first + k >= row.seen) x[k] = -kInfinity<W>;
}

template <typename T, int N>
__global__ void softmax_rows(CudaSoftmax<T> a) {
  using W = Wide<T>;
  TRIMARAN_SHARED(W, scratch, kWarps);
  const Row row = row_of(a.seen);
  T* y = a.y + static_cast<int64_t>(blockIdx.x) * row.keys;
  MaxSum<W> all;
  for (int i = threadIdx.x * N; i < row.seen; i += blockDim.x * N) {
    W x[N];
    scores(a, row, i, x);
    all.include(x);
  }
  all.join_block(scratch);
  const W base = MaxSum<W>::base(all.max), factor = all.sum == 0 ? W(0) : 1 / all.sum;
  for (int i = threadIdx.x * N; i < row.keys; i += blockDim.x * N) {
    W x[N] = {};
    if (i < row.seen) {
      scores(a, row, i, x);
#pragma unroll
      for (int k = 0; k < N; ++k) x[k] = exp(x[k] - base) * factor;
    }
    store(x, y + i);
  }
}

template <typename T, int N>
__global__ void softmax_rows_backward(CudaSoftmaxBackward<T> a) {
  using W = Wide<T>;
  TRIMARAN_SHARED(W, scratch, kWarps);
  const Row row = row_of(a.seen);
  const int64_t start = static_cast<int64_t>(blockIdx.x) * row.keys;
  W sum = 0;
  for (int i = threadIdx.x * N; i < row.seen; i += blockDim.x * N) {
    W y[N], dy[N];
    load(a.y + start + i, y);
    load(a.dy + start + i, dy);
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (i + k < row.seen) sum += y[k] * dy[k];
  }
  sum = block_sum(sum, scratch);
  const W scale = static_cast<W>(a.scale), inner = static_cast<W>(a.cap == 0 ? 0 : a.scale / a.cap);
  for (int i = threadIdx.x * N; i < row.keys; i += blockDim.x * N) {
    W dx[N] = {};
    if (i < row.seen) {
      W y[N], dy[N], x[N] = {};
      load(a.y + start + i, y);
      load(a.dy + start + i, dy);
      if (a.cap != 0) load(a.x + start + i, x);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const W bent = a.cap != 0 ? tanh(x[k] * inner) : W(0);
        if (i + k < row.seen) dx[k] = y[k] * (dy[k] - sum) * scale * (1 - bent * bent);
      }
    }
    store(dx, a.dx + start + i);
  }
}

int64_t rows_of(const CudaAttended& a) { return a.batch * a.heads * a.queries; }

}  // namespace

template <typename T>
cudaError_t cuda_softmax(const CudaSoftmax<T>& a, cudaStream_t stream) {
  const int64_t rows = rows_of(a.seen), keys = a.seen.keys;
  if (rows == 0 || keys == 0) return cudaSuccess;
  constexpr int64_t kStep = kLanes<T>;
  const bool strides = a.bias_batch % kStep == 0 && a.bias_head % kStep == 0 && a.bias_query % kStep == 0;
  if (strides && vectorised<T>(keys, a.x, a.bias, a.y))
    return launch(softmax_rows<T, kLanes<T>>, blocks_for(rows), dim3(threads_for(keys / kStep)), stream, a);
  return launch(softmax_rows<T, 1>, blocks_for(rows), dim3(threads_for(keys)), stream, a);
}

template <typename T>
cudaError_t cuda_softmax_backward(const CudaSoftmaxBackward<T>& a, cudaStream_t stream) {
  const int64_t rows = rows_of(a.seen), keys = a.seen.keys;
  if (rows == 0 || keys == 0) return cudaSuccess;
  if (vectorised<T>(keys, a.dy, a.y, a.x, a.dx))
    return launch(softmax_rows_backward<T, kLanes<T>>, blocks_for(rows), dim3(threads_for(keys / kLanes<T>)), stream,
                  a);
  return launch(softmax_rows_backward<T, 1>, blocks_for(rows), dim3(threads_for(keys)), stream, a);
}

#define TRIMARAN_SOFTMAX(T)                                                    \
  template cudaError_t cuda_softmax(const CudaSoftmax<T>&, cudaStream_t); \
  template cudaError_t cuda_softmax_backward(const CudaSoftmaxBackward<T>&, cudaStream_t);
TRIMARAN_SOFTMAX(float)
TRIMARAN_SOFTMAX(double)
TRIMARAN_SOFTMAX(__half)
TRIMARAN_SOFTMAX(__nv_bfloat16)

}  // namespace trimaran
