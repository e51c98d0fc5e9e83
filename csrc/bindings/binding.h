// What every binding needs: each is a file that checks shapes and dtypes, cuts the work of one kernel into ranges for
// torch's threads, and declares the operator to torch.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "kernels.h"

using at::Tensor;

constexpr int64_t kGrain = 16384;  // elements a thread should at least get

inline int64_t rows_grain(int64_t width) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)); }

inline void same(const Tensor& a, const Tensor& b, const char* what) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), what, " must have one dtype, not ", a.scalar_type(), " and ",
              b.scalar_type());
}

#define DISPATCH(TENSOR, NAME, ...) AT_DISPATCH_FLOATING_TYPES((TENSOR).scalar_type(), NAME, __VA_ARGS__)
