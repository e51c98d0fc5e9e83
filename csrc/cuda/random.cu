// Normals and dropout from Philox on the GPU. A thread draws one counter and serves the up to four elements of a row
// that are its lanes, so rows may start and end anywhere in the stream.
#include "cuda_kernels.h"
#include "launch.h"
#include "philox.h"

namespace trimaran {
namespace {

// Counters that touch a row of f elements, whatever lane it starts at.
__host__ __device__ __forceinline__ int64_t counters_of_row(int64_t f) { return (f + 6) / 4; }

// Call use(column, word) for the elements of the row [first, first + f) of the stream that lie in its nth counter.
template <typename Use>
__device__ __forceinline__ void for_lanes(uint64_t key, uint64_t first, int64_t f, int64_t nth, Use use) {
  const uint64_t counter = (first >> 2) + nth;
  const int64_t column = static_cast<int64_t>(4 * counter - first);  // of lane 0: negative before the row's start
  if (column >= f) return;
  const Words words = philox(counter, key);
  for (int lane = 0; lane < 4; ++lane)
    if (column + lane >= 0 && column + lane < f) use(column + lane, words.w[lane]);
}

__device__ __forceinline__ uint64_t first_of_row(const Box& box, int64_t row) {
  uint64_t index = box.offsets[box.dims - 1], stride = box.global_sizes[box.dims - 1];
  for (int dim = box.dims - 2; dim >= 0; --dim) {
    index += (box.offsets[dim] + row % box.sizes[dim]) * stride;
    row /= box.sizes[dim];
    stride *= box.global_sizes[dim];
  }
  return index;
}

template <typename T>
__global__ void fill_normal(T* out, uint64_t key, Box box, int64_t rows, double std, double mean) {
  const int64_t f = box.sizes[box.dims - 1], counters = counters_of_row(f);
  for_each_index(rows * counters, [&](int64_t i) {
    const int64_t row = i / counters;
    for_lanes(key, first_of_row(box, row), f, i % counters, [&](int64_t column, uint32_t word) {
      out[row * f + column] = static_cast<T>(to_normal(word) * std + mean);
    });
  });
}

__device__ __forceinline__ float scaled(float x, double scale) { return x * static_cast<float>(scale); }
__device__ __forceinline__ double scaled(double x, double scale) { return x * scale; }
__device__ __forceinline__ __half scaled(__half x, double scale) {
  return __float2half(__half2float(x) * static_cast<float>(scale));
}
__device__ __forceinline__ __nv_bfloat16 scaled(__nv_bfloat16 x, double scale) {
  return __float2bfloat16(__bfloat162float(x) * static_cast<float>(scale));
}

template <typename T>
__global__ void drop(const T* x, T* y, uint64_t key, const int64_t* addresses, int64_t rows, int64_t f, int64_t width,
                     int64_t start, uint32_t threshold, double scale) {
  const int64_t counters = counters_of_row(f);
  for_each_index(rows * counters, [&](int64_t i) {
    const int64_t row = i / counters;
    for_lanes(key, addresses[row] * width + start, f, i % counters, [&](int64_t column, uint32_t word) {
      const int64_t at = row * f + column;
      y[at] = word >= threshold ? scaled(x[at], scale) : static_cast<T>(0.0f);
    });
  });
}

}  // namespace

template <typename T>
cudaError_t cuda_fill_normal(T* out, uint64_t key, const Box& box, double std, double mean, cudaStream_t stream) {
  int64_t rows = 1;
  for (int dim = 0; dim + 1 < box.dims; ++dim) rows *= box.sizes[dim];
  const int64_t count = rows * counters_of_row(box.sizes[box.dims - 1]);
  return launch(fill_normal<T>, count, stream, out, key, box, rows, std, mean);
}

template <typename T>
cudaError_t cuda_dropout(const T* x, T* y, uint64_t key, const int64_t* addresses, int64_t rows, int64_t f,
                         int64_t width, int64_t column, uint32_t threshold, double scale, cudaStream_t stream) {
  return launch(drop<T>, rows * counters_of_row(f), stream, x, y, key, addresses, rows, f, width, column, threshold,
                scale);
}

#define TRIMARAN_DROPOUT(T)                                                                                          \
  template cudaError_t cuda_dropout(const T*, T*, uint64_t, const int64_t*, int64_t, int64_t, int64_t, int64_t,     \
                                    uint32_t, double, cudaStream_t);
TRIMARAN_DROPOUT(float)
TRIMARAN_DROPOUT(double)
TRIMARAN_DROPOUT(__half)
TRIMARAN_DROPOUT(__nv_bfloat16)
template cudaError_t cuda_fill_normal(float*, uint64_t, const Box&, double, double, cudaStream_t);
template cudaError_t cuda_fill_normal(double*, uint64_t, const Box&, double, double, cudaStream_t);

}  // namespace trimaran
