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

#include "half.h"
#include "kernels.h"

using at::Tensor;

constexpr int64_t kGrain = 16384;  // elements a thread should at least get

inline int64_t rows_grain(int64_t width) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)); }

inline void same(const Tensor& a, const Tensor& b, const char* what) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), what, " must have one dtype, not ", a.scalar_type(), " and ",
              b.scalar_type());
}

// The kernels' own name of an element type of torch.
template <typename T>
struct Stored {
  using type = T;
};
template <>
struct Stored<at::BFloat16> {
  using type = trimaran::BFloat16;
};
template <>
struct Stored<at::Half> {
  using type = trimaran::Half;
};

template <typename T>
const typename Stored<T>::type* input(const Tensor& x) {
  return reinterpret_cast<const typename Stored<T>::type*>(x.const_data_ptr<T>());
}
template <typename T>
typename Stored<T>::type* output(const Tensor& x) {
  return reinterpret_cast<typename Stored<T>::type*>(x.data_ptr<T>());
}

// Run the lambda with scalar_t: float and double, or with _ALL the 16-bit types too.
#define DISPATCH_ALL(TENSOR, NAME, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, (TENSOR).scalar_type(), NAME, __VA_ARGS__)
#define DISPATCH(TENSOR, NAME, ...) AT_DISPATCH_FLOATING_TYPES((TENSOR).scalar_type(), NAME, __VA_ARGS__)
