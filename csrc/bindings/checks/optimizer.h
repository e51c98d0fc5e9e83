#pragma once

#include <initializer_list>

#include "checks/tensors.h"

// `scalars`: step, grad_scale and keep.
inline void check_adamw(const Tensor& param, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                        const OptionalTensor& rounded, std::initializer_list<Tensor> scalars) {
  for (const Tensor& other : {grad, exp_avg, exp_avg_sq}) {
    same(param, other, "adamw_: parameter, gradient and moments");
    TORCH_CHECK(other.is_contiguous() && other.numel() == param.numel(), "adamw_: tensors of different shapes");
  }
  TORCH_CHECK(param.is_contiguous(), "adamw_: parameter is not contiguous");
  if (rounded) {
    const auto dtype = rounded->scalar_type();
    TORCH_CHECK(dtype == at::kBFloat16 || dtype == at::kHalf, "adamw_ rounds to 16 bits, not to ", dtype);
    TORCH_CHECK(rounded->is_contiguous() && rounded->numel() == param.numel(), "adamw_: tensors of different shapes");
    on_one_device(param, *rounded, "adamw_: parameter and its rounded copy");
  }
  for (const Tensor& scalar : scalars) {
    TORCH_CHECK(scalar.dim() == 0 && at::isFloatingType(scalar.scalar_type()),
                "adamw_: step, grad_scale and keep are floating point tensors without dimensions, not ",
                scalar.scalar_type(), " ", scalar.sizes());
    on_one_device(param, scalar, "adamw_: parameter and step, grad_scale and keep");
  }
}

inline void check_sum_of_squares(const Tensor& x) {
  TORCH_CHECK(x.is_contiguous(), "sum_of_squares takes a contiguous tensor");
}

inline void check_means_of_squares(const Tensor& x) {
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous(), "means_of_squares takes a contiguous matrix");
}
