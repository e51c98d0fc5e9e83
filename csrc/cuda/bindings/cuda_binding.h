// What the binding of every CUDA kernel needs. The operators are declared, and their arguments checked, in
// csrc/bindings/; the files of this folder give them their implementations for tensors on a GPU. None of them waits
// for the device.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "cuda_kernels.h"
#include "elements.h"

// Tests execute these bindings on tensors of another device, with kernels that run there.
#if !defined(TRIMARAN_CUDA_KEY)
#define TRIMARAN_CUDA_KEY CUDA
#endif

template <>
struct Stored<at::BFloat16> {
  using type = __nv_bfloat16;
};
template <>
struct Stored<at::Half> {
  using type = __half;
};

// Call launch(stream) with x's device as the current one, and with its current stream.
template <typename Launch>
void on_device_of(const Tensor& x, Launch launch) {
  const c10::cuda::CUDAGuard guard(x.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(launch(stream));
}
