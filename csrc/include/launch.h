// Launch a kernel that walks over its work by `for_each_index`. nvcc launches it on the device; a plain C++ compiler
// runs the same source on the host, one thread after another, which is how tests execute kernels without a GPU. That
// serves kernels whose threads do not talk to each other: no barriers, no shuffles, no shared memory.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace trimaran {

constexpr int kThreads = 256;       // per block
constexpr int64_t kBlocks = 16384;  // at most; threads take several indices each beyond that

#if !defined(__CUDACC__)
inline thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;
#endif

template <typename Use>
__device__ __forceinline__ void for_each_index(int64_t count, Use use) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) use(i);
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t count, cudaStream_t stream, Arguments... arguments) {
  if (count == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(std::min(kBlocks, (count + kThreads - 1) / kThreads))), block(kThreads);
#if defined(__CUDACC__)
  kernel<<<grid, block, 0, stream>>>(arguments...);
  return cudaGetLastError();
#else
  (void)stream;
  gridDim = grid;
  blockDim = block;
  for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x) kernel(arguments...);
  return cudaSuccess;
#endif
}

}  // namespace trimaran
