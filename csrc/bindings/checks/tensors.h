// What operators demand of their arguments, and what they allocate, is the same on every device. The files of this
// folder say it once, for the bindings of the CPU kernels and for those of the CUDA kernels. Kernels read raw memory:
// whatever a pointer must be true of is checked here.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <optional>

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline void on_one_device(const Tensor& a, const Tensor& b, const char* what) {
  TORCH_CHECK(a.device() == b.device(), what, " must be on one device, not ", a.device(), " and ", b.device());
}

inline void same(const Tensor& a, const Tensor& b, const char* what) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), what, " must have one dtype, not ", a.scalar_type(), " and ",
              b.scalar_type());
  on_one_device(a, b, what);
}

// Float32, or float64 for float64: what statistics and sums over tensors of this dtype are held in.
inline at::ScalarType wide(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }
