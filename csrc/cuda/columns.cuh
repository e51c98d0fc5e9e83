// The second stage of gradients that every row adds to: blocks have left one partial row each, and here their columns
// are summed, always in the same order.
#pragma once

#include "element.cuh"
#include "launch.h"

namespace trimaran {

constexpr int kColumns = 32;  // of a block: a warp reads them side by side
constexpr int kStripes = 32;  // warps of a block; each takes every 32nd row

template <typename Part, typename Out>
__global__ void column_sums(const Part* parts, Out* out, int64_t rows, int64_t width, Part factor) {
  TRIMARAN_SHARED(Part, stripes, kColumns* kStripes);
  const int lane = threadIdx.x % kColumns, stripe = threadIdx.x / kColumns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + lane;
  Part sum = 0;
  if (column < width) {
#pragma unroll 4
    for (int64_t row = stripe; row < rows; row += kStripes) sum += parts[row * width + column];
  }
  stripes[threadIdx.x] = sum;
  __syncthreads();
  if (stripe > 0 || column >= width) return;
  for (int other = 1; other < kStripes; ++other) sum += stripes[other * kColumns + lane];
  narrow(sum * factor, out[column]);
}

// out[c] = factor * sum over rows of parts[r, c]; zeros when there are no rows.
template <typename Part, typename Out>
cudaError_t sum_columns(const Part* parts, Out* out, int64_t rows, int64_t width, cudaStream_t stream,
                        Part factor = 1) {
  if (width == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>((width + kColumns - 1) / kColumns));
  return launch(column_sums<Part, Out>, grid, dim3(kColumns * kStripes), stream, parts, out, rows, width,
                factor);
}

}  // namespace trimaran
