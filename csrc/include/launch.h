// Launching kernels, and what they use of CUDA by another name. nvcc compiles all of it to plain CUDA. For a plain C++
// compiler csrc/testing/emulation.h, which only tests have on their include path, runs the same sources on the host.
//
// Shared memory is TRIMARAN_SHARED(type, name, count), an array of constant size within a kernel or a function that all
// threads of a block call. It can be passed on by reference to a template parameter.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#if defined(__CUDACC__)
#define TRIMARAN_SHARED(T, name, N) __shared__ T name[N]
#else
#include "emulation.h"
#endif

namespace trimaran {

constexpr int kThreads = 256;       // per block, of kernels that walk over their work by for_each_index
constexpr int64_t kBlocks = 16384;  // at most; threads take several indices each beyond that

template <typename Use>
__device__ __forceinline__ void for_each_index(int64_t count, Use use) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) use(i);
}

// Run kernel(arguments...) on `grid` blocks of `block` threads, neither of which may be empty.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream, Arguments... arguments) {
#if defined(__CUDACC__)
  kernel<<<grid, block, 0, stream>>>(arguments...);
  return cudaGetLastError();
#else
  (void)stream;
  auto call = [&] { kernel(arguments...); };
  return emulation::run(grid, block, [](void* context) { (*static_cast<decltype(call)*>(context))(); }, &call);
#endif
}

// Run a kernel that walks over `count` indices by for_each_index.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t count, cudaStream_t stream, Arguments... arguments) {
  if (count == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(std::min(kBlocks, (count + kThreads - 1) / kThreads)));
  return launch(kernel, grid, dim3(kThreads), stream, arguments...);
}

}  // namespace trimaran
