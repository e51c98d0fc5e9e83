// RMSNorm and LayerNorm, a block per row: x + residual, its statistics and the scaled row in one kernel. The second and
// third look at a row find it in the caches.
#include "block.cuh"
#include "columns.cuh"
#include "cuda_kernels.h"

namespace trimaran {
namespace {

template <typename T, int N, bool kCentred>
__global__ void norm_rows(CudaNorm<T> a) {
  using W = Wide<T>;
  TRIMARAN_SHARED(W, scratch, kWarps);
  const int vectors = static_cast<int>(a.h / N);
  const int64_t row = blockIdx.x;
  const int64_t start = row * a.h;
  const T* source = (a.residual != nullptr ? a.total : a.x) + start;
  W sum = 0;
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
    W x[N];
    load(a.x + start + i * N, x);
    if (a.residual != nullptr) {
      W added[N];
      load(a.residual + start + i * N, added);
#pragma unroll
      for (int k = 0; k < N; ++k) x[k] = rounded<T>(x[k] + added[k]);
      store(x, a.total + start + i * N);
    }
#pragma unroll
    for (int k = 0; k < N; ++k) sum += kCentred ? x[k] : x[k] * x[k];
  }
  sum = block_sum(sum, scratch);
  const W mean = kCentred ? sum / static_cast<W>(a.h) : W(0);
  if (kCentred) {
    sum = 0;
    for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
      W x[N];
      load(source + i * N, x);
#pragma unroll
      for (int k = 0; k < N; ++k) sum += (x[k] - mean) * (x[k] - mean);
    }
    sum = block_sum(sum, scratch);
  }
  const W rstd = W(1) / sqrt(sum / static_cast<W>(a.h) + static_cast<W>(a.eps));
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
    W x[N], weight[N], bias[N] = {};
    load(source + i * N, x);
    load(a.weight + i * N, weight);
    if (a.bias != nullptr) load(a.bias + i * N, bias);
#pragma unroll
    for (int k = 0; k < N; ++k) x[k] = (x[k] - mean) * rstd * weight[k] + bias[k];
    store(x, a.y + start + i * N);
  }
  if (threadIdx.x == 0) {
    a.rstd[row] = rstd;
    if (kCentred) a.mean[row] = mean;
  }
}

constexpr int kChunkRows = 32;  // of a block in the backward, at most

// Blocks take chunks of rows: first every warp finds the means of its rows, then every thread keeps to its columns and
// sums their weight gradients in registers. Chunks are small enough for the second look to find the rows in the cache.
template <typename T, int N, bool kCentred>
__global__ void norm_rows_backward(CudaNormBackward<T> a, int64_t chunk_rows) {
  using W = Wide<T>;
  TRIMARAN_SHARED(W, slope, kChunkRows);  // mean of dy * weight * normed
  TRIMARAN_SHARED(W, level, kChunkRows);  // mean of dy * weight
  const int vectors = static_cast<int>(a.h / N);
  const int64_t first = blockIdx.x * chunk_rows;
  const int rows = static_cast<int>(a.rows - first < chunk_rows ? a.rows - first : chunk_rows);
  for (int r = threadIdx.x / 32; r < rows; r += blockDim.x / 32) {
    const int64_t start = (first + r) * a.h;
    const W mean = kCentred ? a.mean[first + r] : W(0), rstd = a.rstd[first + r];
    W with_normed = 0, alone = 0;
    for (int i = threadIdx.x % 32; i < vectors; i += 32) {
      W dy[N], x[N], weight[N];
      load(a.dy + start + i * N, dy);
      load(a.x + start + i * N, x);
      load(a.weight + i * N, weight);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        with_normed += dy[k] * weight[k] * ((x[k] - mean) * rstd);
        if (kCentred) alone += dy[k] * weight[k];
      }
    }
    with_normed = warp_sum(with_normed);
    if (kCentred) alone = warp_sum(alone);
    if (threadIdx.x % 32 == 0) {
      slope[r] = with_normed / static_cast<W>(a.h);
      level[r] = alone / static_cast<W>(a.h);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
    W weight[N], dweight[N] = {}, dbias[N] = {};
    load(a.weight + i * N, weight);
    for (int r = 0; r < rows; ++r) {
      const int64_t at = (first + r) * a.h + i * N;
      const W mean = kCentred ? a.mean[first + r] : W(0), rstd = a.rstd[first + r];
      const W along = slope[r], shift = kCentred ? static_cast<W>(level[r]) : W(0);
      W dy[N], x[N], dx[N] = {};
      load(a.dy + at, dy);
      load(a.x + at, x);
      if (a.dtotal != nullptr) load(a.dtotal + at, dx);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const W normed = (x[k] - mean) * rstd;
        dx[k] += rstd * (dy[k] * weight[k] - shift - normed * along);
        dweight[k] += dy[k] * normed;
        if (kCentred) dbias[k] += dy[k];
      }
      store(dx, a.dx + at);
    }
    store(dweight, a.dweight_parts + blockIdx.x * a.h + i * N);
    if (a.dbias_parts != nullptr) store(dbias, a.dbias_parts + blockIdx.x * a.h + i * N);
  }
}

template <typename T, int N>
cudaError_t forward(const CudaNorm<T>& a, cudaStream_t stream) {
  const auto kernel = a.mean != nullptr ? norm_rows<T, N, true> : norm_rows<T, N, false>;
  return launch(kernel, blocks_for(a.rows), dim3(threads_for(a.h / N)), stream, a);
}

template <typename T, int N>
cudaError_t backward(const CudaNormBackward<T>& a, cudaStream_t stream) {
  const auto kernel = a.mean != nullptr ? norm_rows_backward<T, N, true> : norm_rows_backward<T, N, false>;
  const int64_t chunk = norm_chunk_rows(a.h);
  return launch(kernel, blocks_for(norm_chunks(a.rows, a.h)), dim3(256), stream, a, chunk);
}

}  // namespace

int64_t norm_chunk_rows(int64_t h) {
  return std::min<int64_t>(kChunkRows, std::max<int64_t>(4, 16384 / std::max<int64_t>(1, h)));
}

template <typename T>
cudaError_t cuda_norm(const CudaNorm<T>& a, cudaStream_t stream) {
  if (a.rows == 0) return cudaSuccess;
  return vectorised<T>(a.h, a.x, a.residual, a.weight, a.bias, a.total, a.y) ? forward<T, kLanes<T>>(a, stream)
                                                                             : forward<T, 1>(a, stream);
}

template <typename T>
cudaError_t cuda_norm_backward(const CudaNormBackward<T>& a, cudaStream_t stream) {
  if (a.rows > 0) {
    const cudaError_t error =
        vectorised<T>(a.h, a.dy, a.x, a.weight, a.dtotal, a.dx, a.dweight_parts, a.dbias_parts)
            ? backward<T, kLanes<T>>(a, stream)
            : backward<T, 1>(a, stream);
    if (error != cudaSuccess) return error;
  }
  const int64_t chunks = norm_chunks(a.rows, a.h);
  const cudaError_t error = sum_columns(a.dweight_parts, a.dweight, chunks, a.h, stream);
  if (error != cudaSuccess || a.dbias == nullptr) return error;
  return sum_columns(a.dbias_parts, a.dbias, chunks, a.h, stream);
}

#define TRIMARAN_NORM(T)                                                 \
  template cudaError_t cuda_norm(const CudaNorm<T>&, cudaStream_t); \
  template cudaError_t cuda_norm_backward(const CudaNormBackward<T>&, cudaStream_t);
TRIMARAN_NORM(float)
TRIMARAN_NORM(double)
TRIMARAN_NORM(__half)
TRIMARAN_NORM(__nv_bfloat16)

}  // namespace trimaran
