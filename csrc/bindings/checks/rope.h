#pragma once

#include <algorithm>

#include "checks/tensors.h"

// Return the rows of the tables, which are [s, r / 2] or [b, s, r / 2], for x [b, s, g, d]; 1 at least.
inline int64_t check_rope(const Tensor& x, const Tensor& cos, const Tensor& sin, int64_t heads) {
  TORCH_CHECK(x.dim() == 4 && x.is_contiguous(), "rope_ takes a contiguous tensor [b, s, g, d]");
  TORCH_CHECK(0 <= heads && heads <= x.size(2), "rope_: cannot turn ", heads, " of ", x.size(2), " heads");
  TORCH_CHECK(cos.dim() == 2 || cos.dim() == 3, "rope_: tables have 2 or 3 dimensions, not ", cos.dim());
  const int64_t b = x.size(0), s = x.size(1), half = cos.size(-1);
  TORCH_CHECK(2 * half <= x.size(3) && cos.sizes() == sin.sizes(), "rope_: tables do not fit width ", x.size(3));
  TORCH_CHECK(cos.scalar_type() == at::kFloat && sin.scalar_type() == at::kFloat, "rope_: tables must be float32");
  on_one_device(x, cos, "rope_: input and tables");
  on_one_device(x, sin, "rope_: input and tables");
  const int64_t rows = cos.dim() == 2 ? s : b * s;
  TORCH_CHECK(cos.numel() == rows * half, "rope_: tables do not fit ", b, " x ", s, " positions");
  return std::max<int64_t>(1, rows);
}
