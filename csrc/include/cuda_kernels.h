// CUDA kernels, launched from plain C++. They know nothing of torch: pointers are device pointers, the return value is
// the launch's error. Numbers equal those of the CPU kernels to the last bit (compile with -fmad=false).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace trimaran {

constexpr int kMaxDims = 8;

// An axis-aligned box of a global row-major tensor. sizes are the box's own.
struct Box {
  int dims;
  int64_t sizes[kMaxDims], offsets[kMaxDims], global_sizes[kMaxDims];
};

// Fill `out`, the contiguous box, with mean + std * normal of its elements' global indices in the stream `key`.
template <typename T>
cudaError_t cuda_fill_normal(T* out, uint64_t key, const Box& box, double std, double mean, cudaStream_t stream);

// y = keep ? x * scale : 0 for x [rows, f]; element (r, i) is kept if word addresses[r] * width + column + i of the
// stream reaches `threshold`. 16-bit elements are multiplied in float and rounded once.
template <typename T>
cudaError_t cuda_dropout(const T* x, T* y, uint64_t key, const int64_t* addresses, int64_t rows, int64_t f,
                         int64_t width, int64_t column, uint32_t threshold, double scale, cudaStream_t stream);

}  // namespace trimaran
