#pragma once

#include "checks/tensors.h"

// `out` is the box at `offsets` of a tensor of `global_shape`.
inline void check_box(const char* op, const Tensor& out, at::IntArrayRef global_shape, at::IntArrayRef offsets) {
  const auto dims = static_cast<size_t>(out.dim());
  TORCH_CHECK(out.is_contiguous() && dims >= 1 && global_shape.size() == dims && offsets.size() == dims, op,
              " takes a contiguous box with as many offsets as dimensions");
  TORCH_CHECK(out.scalar_type() == at::kFloat || out.scalar_type() == at::kDouble, op,
              " fills float32 and float64, not ", out.scalar_type());
  for (size_t dim = 0; dim < dims; ++dim) {
    const int64_t size = out.size(static_cast<int64_t>(dim));
    TORCH_CHECK(offsets[dim] >= 0 && offsets[dim] + size <= global_shape[dim], op, ": the box ", out.sizes(), " at ",
                offsets, " reaches out of ", global_shape);
  }
}

inline void check_dropout(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual,
                          const Tensor& rows) {
  TORCH_CHECK(x.dim() >= 1 && x.is_contiguous() && rows.is_contiguous() && rows.scalar_type() == at::kLong &&
                  rows.numel() * x.size(-1) == x.numel(),
              "dropout takes contiguous x [..., f] and int64 rows of x.shape[:-1]");
  on_one_device(x, rows, "dropout: input and rows");
  const int64_t f = x.size(-1);
  if (bias) {
    same(x, *bias, "dropout: input and bias");
    TORCH_CHECK(bias->is_contiguous() && bias->numel() == f, "dropout: ", bias->numel(), " biases for rows of ", f);
  }
  if (residual) {
    same(x, *residual, "dropout: input and residual");
    TORCH_CHECK(residual->is_contiguous() && residual->sizes() == x.sizes(), "dropout: residual of another shape");
  }
}
