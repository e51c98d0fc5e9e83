// Stand-in for torch's header of this name, on the include path of tests alone: the bindings of csrc/cuda/bindings/ run
// without CUDA, on kernels that are emulated. It remembers that a device was chosen.
#pragma once

#include <c10/core/Device.h>

namespace c10::cuda {

inline thread_local int guards = 0;

class CUDAGuard {
 public:
  explicit CUDAGuard(Device) { ++guards; }
  CUDAGuard(const CUDAGuard&) = delete;
  ~CUDAGuard() { --guards; }
};

}  // namespace c10::cuda
