// Normals, uniform numbers and dropout from Philox on the GPU. A thread draws one counter and serves the up to four
// elements of a row that are its lanes, so rows may start and end anywhere in the stream.
#include "cuda_kernels.h"
#include "element.cuh"
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

struct Normal {
  double std, mean;
  __device__ __forceinline__ double operator()(uint32_t word) const { return to_normal(word) * std + mean; }
};

struct Uniform {
  double low, span;
  __device__ __forceinline__ double operator()(uint32_t word) const { return low + span * to_unit(word); }
};

template <typename T, typename Number>
__global__ void fill_box(T* out, uint64_t key, Box box, int64_t rows, Number number) {
  const int64_t f = box.sizes[box.dims - 1], counters = counters_of_row(f);
  for_each_index(rows * counters, [&](int64_t i) {
    const int64_t row = i / counters;
    for_lanes(key, first_of_row(box, row), f, i % counters, [&](int64_t column, uint32_t word) {
      out[row * f + column] = static_cast<T>(number(word));
    });
  });
}

template <typename T, typename Number>
cudaError_t fill(T* out, uint64_t key, const Box& box, Number number, cudaStream_t stream) {
  int64_t rows = 1;
  for (int dim = 0; dim + 1 < box.dims; ++dim) rows *= box.sizes[dim];
  const int64_t count = rows * counters_of_row(box.sizes[box.dims - 1]);
  return launch(fill_box<T, Number>, count, stream, out, key, box, rows, number);
}

template <typename T>
__global__ void drop(CudaDropout<T> a) {
  using W = Wide<T>;
  const int64_t counters = counters_of_row(a.f);
  const W factor = static_cast<W>(a.scale);
  for_each_index(a.rows * counters, [&](int64_t i) {
    const int64_t row = i / counters;
    for_lanes(a.key, a.addresses[row] * a.width + a.column, a.f, i % counters, [&](int64_t column, uint32_t word) {
      const int64_t at = row * a.f + column;
      W value = widen(a.x[at]);
      if (a.bias != nullptr) value += widen(a.bias[column]);
      value = word >= a.threshold ? value * factor : W(0);
      if (a.residual != nullptr) value = widen(a.residual[at]) + value;
      narrow(value, a.y[at]);
    });
  });
}

}  // namespace

template <typename T>
cudaError_t cuda_fill_normal(T* out, uint64_t key, const Box& box, double std, double mean, cudaStream_t stream) {
  return fill(out, key, box, Normal{std, mean}, stream);
}

template <typename T>
cudaError_t cuda_fill_uniform(T* out, uint64_t key, const Box& box, double low, double high, cudaStream_t stream) {
  return fill(out, key, box, Uniform{low, high - low}, stream);
}

template <typename T>
cudaError_t cuda_dropout(const CudaDropout<T>& a, cudaStream_t stream) {
  return launch(drop<T>, a.rows * counters_of_row(a.f), stream, a);
}

template cudaError_t cuda_fill_normal(float*, uint64_t, const Box&, double, double, cudaStream_t);
template cudaError_t cuda_fill_normal(double*, uint64_t, const Box&, double, double, cudaStream_t);
template cudaError_t cuda_fill_uniform(float*, uint64_t, const Box&, double, double, cudaStream_t);
template cudaError_t cuda_fill_uniform(double*, uint64_t, const Box&, double, double, cudaStream_t);
template cudaError_t cuda_dropout(const CudaDropout<float>&, cudaStream_t);
template cudaError_t cuda_dropout(const CudaDropout<double>&, cudaStream_t);
template cudaError_t cuda_dropout(const CudaDropout<__half>&, cudaStream_t);
template cudaError_t cuda_dropout(const CudaDropout<__nv_bfloat16>&, cudaStream_t);

}  // namespace trimaran
