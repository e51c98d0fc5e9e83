// AdamW (arXiv 1711.05101) in one pass over parameter, gradient and moments; and the sums that clipping and Adafactor
// (arXiv 1804.04235) need. What a step depends on is read on the device, so that the host never waits.
#include <cmath>

#include "block.cuh"
#include "columns.cuh"
#include "cuda_kernels.h"

namespace trimaran {
namespace {

template <typename W>
struct Factors {
  W grad_scale, mix1, beta2, mix2, eps, shrink, rate, spread;
};

template <int N, typename W, typename Rounded>
__device__ __forceinline__ void update(const CudaAdamW<W, Rounded>& a, const Factors<W>& f, int64_t at) {
  W param[N], grad[N], first[N], second[N];
  load(a.param + at, param);
  load(a.grad + at, grad);
  load(a.exp_avg + at, first);
  load(a.exp_avg_sq + at, second);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const W g = grad[k] * f.grad_scale;
    first[k] += f.mix1 * (g - first[k]);
    second[k] = second[k] * f.beta2 + g * g * f.mix2;
    param[k] = param[k] * f.shrink - f.rate * first[k] / (sqrt(second[k]) * f.spread + f.eps);
  }
  store(param, a.param + at);
  store(first, a.exp_avg + at);
  store(second, a.exp_avg_sq + at);
  if (a.rounded != nullptr) store(param, a.rounded + at);
}

template <typename W, typename Rounded, int N>
__global__ void adamw(CudaAdamW<W, Rounded> a) {
  TRIMARAN_SHARED(W, corrections, 2);  // powers in double are slow: once a block
  if (*a.keep == 0) return;
  if (threadIdx.x == 0) {
    corrections[0] = static_cast<W>(a.lr / (1 - pow(a.beta1, *a.step)));
    corrections[1] = static_cast<W>(1 / sqrt(1 - pow(a.beta2, *a.step)));
  }
  __syncthreads();
  const Factors<W> f{static_cast<W>(*a.grad_scale),
                     static_cast<W>(1 - a.beta1),
                     static_cast<W>(a.beta2),
                     static_cast<W>(1 - a.beta2),
                     static_cast<W>(a.eps),
                     static_cast<W>(1 - a.lr * a.weight_decay),
                     corrections[0],
                     corrections[1]};
  for_each_index(a.count / N, [&](int64_t i) { update<N>(a, f, i * N); });
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (thread < a.count % N) update<1>(a, f, a.count - 1 - thread);
}

template <int N, typename T>
__device__ __forceinline__ double squares(const T* x) {
  Wide<T> wide[N];
  load(x, wide);
  double sum = 0;
#pragma unroll
  for (int k = 0; k < N; ++k) sum += static_cast<double>(wide[k]) * static_cast<double>(wide[k]);
  return sum;
}

template <typename T, int N>
__global__ void sum_squares(const T* x, int64_t count, double* parts) {
  TRIMARAN_SHARED(double, scratch, kWarps);
  const int64_t first = blockIdx.x * kSquareSpan;
  const int64_t last = first + kSquareSpan < count ? first + kSquareSpan : count, whole = last - last % N;
  double sum = 0;
  for (int64_t i = first + threadIdx.x * N; i < whole; i += blockDim.x * N) sum += squares<N>(x + i);
  if (whole + threadIdx.x < last) sum += squares<1>(x + whole + threadIdx.x);
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void sum_parts(const double* parts, int64_t count, double* to) {
  TRIMARAN_SHARED(double, scratch, kWarps);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += parts[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) *to = sum;
}

// A block's rows are read twice, once along and once across: the second time they come from the cache.
template <typename T, int N>
__global__ void square_means(CudaSquareMeans<T> a) {
  using W = Wide<T>;
  const int64_t first = blockIdx.x * kSquareMeanRows;
  const int64_t last = first + kSquareMeanRows < a.rows ? first + kSquareMeanRows : a.rows;
  for (int64_t row = first + threadIdx.x / 32; row < last; row += blockDim.x / 32) {
    W sum = 0;
    for (int64_t i = threadIdx.x % 32 * N; i < a.columns; i += 32 * N) {
      W x[N];
      load(a.x + row * a.columns + i, x);
#pragma unroll
      for (int k = 0; k < N; ++k) sum += x[k] * x[k];
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) a.of_rows[row] = sum / static_cast<W>(a.columns);
  }
  for (int64_t i = threadIdx.x * N; i < a.columns; i += blockDim.x * N) {
    W sums[N] = {};
    for (int64_t row = first; row < last; ++row) {
      W x[N];
      load(a.x + row * a.columns + i, x);
#pragma unroll
      for (int k = 0; k < N; ++k) sums[k] += x[k] * x[k];
    }
    store(sums, a.parts + blockIdx.x * a.columns + i);
  }
}

}  // namespace

template <typename W, typename Rounded>
cudaError_t cuda_adamw(const CudaAdamW<W, Rounded>& a, cudaStream_t stream) {
  constexpr int N = kLanes<W>;
  if (vectorised<W>(0, a.param, a.grad, a.exp_avg, a.exp_avg_sq, a.rounded))
    return launch(adamw<W, Rounded, N>, (a.count + N - 1) / N, stream, a);
  return launch(adamw<W, Rounded, 1>, a.count, stream, a);
}

template <typename T>
cudaError_t cuda_sum_of_squares(const T* x, int64_t count, double* parts, double* sum, cudaStream_t stream) {
  if (count > 0) {
    const auto kernel = vectorised<T>(0, x) ? sum_squares<T, kLanes<T>> : sum_squares<T, 1>;
    const cudaError_t error = launch(kernel, blocks_for(square_parts(count)), dim3(256), stream, x, count, parts);
    if (error != cudaSuccess) return error;
  }
  return launch(sum_parts, dim3(1), dim3(1024), stream, parts, square_parts(count), sum);
}

template <typename T>
cudaError_t cuda_square_means(const CudaSquareMeans<T>& a, cudaStream_t stream) {
  const int64_t chunks = square_mean_chunks(a.rows);
  if (chunks > 0) {
    const auto kernel = vectorised<T>(a.columns, a.x, a.parts) ? square_means<T, kLanes<T>> : square_means<T, 1>;
    const cudaError_t error = launch(kernel, blocks_for(chunks), dim3(256), stream, a);
    if (error != cudaSuccess) return error;
  }
  return sum_columns(a.parts, a.of_columns, chunks, a.columns, stream, static_cast<Wide<T>>(1.0 / a.rows));
}

template cudaError_t cuda_adamw(const CudaAdamW<float, __half>&, cudaStream_t);
template cudaError_t cuda_adamw(const CudaAdamW<float, __nv_bfloat16>&, cudaStream_t);
template cudaError_t cuda_adamw(const CudaAdamW<double, __half>&, cudaStream_t);
template cudaError_t cuda_adamw(const CudaAdamW<double, __nv_bfloat16>&, cudaStream_t);

#define TRIMARAN_SQUARES(T)                                                                        \
  template cudaError_t cuda_sum_of_squares(const T*, int64_t, double*, double*, cudaStream_t); \
  template cudaError_t cuda_square_means(const CudaSquareMeans<T>&, cudaStream_t);
TRIMARAN_SQUARES(float)
TRIMARAN_SQUARES(double)
TRIMARAN_SQUARES(__half)
TRIMARAN_SQUARES(__nv_bfloat16)

}  // namespace trimaran
