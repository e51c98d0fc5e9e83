// Stand-in for torch's header of this name; see CUDAGuard.h. It tells what the emulation saw.
#pragma once

#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#include "CUDAGuard.h"

extern "C" const char* trimaran_emulation_error();

#define C10_CUDA_CHECK(EXPR)                                                                             \
  do {                                                                                                   \
    const cudaError_t error = EXPR;                                                                      \
    TORCH_CHECK(c10::cuda::guards > 0, "a kernel was launched on whichever device was the current one"); \
    TORCH_CHECK(error == cudaSuccess, "CUDA error ", static_cast<int>(error), ": ", trimaran_emulation_error()); \
  } while (false)
