// The local halves of vocabulary-parallel cross-entropy, a block per row. The logits are read once for the statistics,
// and once more when the gradient takes their place.
#include <cmath>

#include "block.cuh"
#include "cuda_kernels.h"
#include "max_sum.cuh"

namespace trimaran {
namespace {

constexpr int64_t kRowThreads = 512;  // rows are long

template <typename T, int N>
__global__ void row_statistics(CudaCrossEntropy<T> a) {
  using W = Wide<T>;
  TRIMARAN_SHARED(W, scratch, kWarps);
  const int64_t row = blockIdx.x;
  const T* logits = a.logits + row * a.v;
  MaxSum<W> all;
  W total = 0;
  for (int64_t i = threadIdx.x * N; i < a.v; i += blockDim.x * N) {
    W x[N];
    load(logits + i, x);
    all.include(x);
#pragma unroll
    for (int k = 0; k < N; ++k) total += x[k];
  }
  all.join_block(scratch);
  if (a.total != nullptr) total = block_sum(total, scratch);
  if (threadIdx.x > 0) return;
  const int64_t local = a.targets[row] - a.start;
  a.max[row] = all.max;
  a.sum[row] = all.sum;
  a.target[row] = local >= 0 && local < a.v ? widen(logits[local]) : W(0);
  if (a.total != nullptr) a.total[row] = total;
}

template <typename T, int N>
__global__ void write_gradient(CudaCrossEntropyGrad<T> a) {
  using W = Wide<T>;
  const int64_t row = blockIdx.x, target = a.targets[row] - a.start;
  const W max = a.max[row], log_sum = a.log_sum[row], scale = a.scale[row];
  const W share = scale * (1 + 2 * static_cast<W>(a.z_loss) * (max + log_sum));
  const double spread = a.smoothing == 0 ? 0.0 : a.smoothing / static_cast<double>(a.vocab);  // then vocab may be 0
  const W everywhere = scale * static_cast<W>(spread);
  const W at_target = scale * static_cast<W>(1 - a.smoothing);
  T* logits = a.logits + row * a.v;
  for (int64_t i = threadIdx.x * N; i < a.v; i += blockDim.x * N) {
    W x[N];
    load(logits + i, x);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      x[k] = scale == 0 ? W(0) : exp((x[k] - max) - log_sum) * share - everywhere;  // masked: not even NaN comes of it
      if (i + k == target) x[k] -= at_target;
    }
    store(x, logits + i);
  }
}

}  // namespace

template <typename T>
cudaError_t cuda_cross_entropy(const CudaCrossEntropy<T>& a, cudaStream_t stream) {
  if (a.rows == 0) return cudaSuccess;
  constexpr int N = kLanes<T>;
  if (vectorised<T>(a.v, a.logits))
    return launch(row_statistics<T, N>, blocks_for(a.rows), dim3(threads_for(a.v / N, kRowThreads)), stream, a);
  return launch(row_statistics<T, 1>, blocks_for(a.rows), dim3(threads_for(a.v, kRowThreads)), stream, a);
}

template <typename T>
cudaError_t cuda_cross_entropy_grad(const CudaCrossEntropyGrad<T>& a, cudaStream_t stream) {
  if (a.rows == 0 || a.v == 0) return cudaSuccess;
  constexpr int N = kLanes<T>;
  if (vectorised<T>(a.v, a.logits))
    return launch(write_gradient<T, N>, blocks_for(a.rows), dim3(threads_for(a.v / N, kRowThreads)), stream, a);
  return launch(write_gradient<T, 1>, blocks_for(a.rows), dim3(threads_for(a.v, kRowThreads)), stream, a);
}

#define TRIMARAN_CROSS_ENTROPY(T)                                                    \
  template cudaError_t cuda_cross_entropy(const CudaCrossEntropy<T>&, cudaStream_t); \
  template cudaError_t cuda_cross_entropy_grad(const CudaCrossEntropyGrad<T>&, cudaStream_t);
TRIMARAN_CROSS_ENTROPY(float)
TRIMARAN_CROSS_ENTROPY(double)
TRIMARAN_CROSS_ENTROPY(__half)
TRIMARAN_CROSS_ENTROPY(__nv_bfloat16)

}  // namespace trimaran
