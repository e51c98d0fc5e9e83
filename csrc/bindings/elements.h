// The elements of tensors by the names that kernels give their types. A binding for kernels with 16-bit types says
// which those are: it specialises Stored.
#pragma once

#include <ATen/Dispatch.h>

#include "checks/tensors.h"

template <typename T>
struct Stored {
  using type = T;
};

template <typename T>
const typename Stored<T>::type* input(const Tensor& x) {
  return reinterpret_cast<const typename Stored<T>::type*>(x.const_data_ptr<T>());
}
template <typename T>
const typename Stored<T>::type* optional_input(const OptionalTensor& x) {
  return x.has_value() ? input<T>(*x) : nullptr;
}
template <typename T>
typename Stored<T>::type* output(const Tensor& x) {
  return reinterpret_cast<typename Stored<T>::type*>(x.data_ptr<T>());
}

// Run the lambda with scalar_t: float and double, or with _ALL the 16-bit types too; with _16 the type of an optional
// tensor of 16 bits, bfloat16 where there is none.
#define DISPATCH_ALL(TENSOR, NAME, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, (TENSOR).scalar_type(), NAME, __VA_ARGS__)
#define DISPATCH(TENSOR, NAME, ...) AT_DISPATCH_FLOATING_TYPES((TENSOR).scalar_type(), NAME, __VA_ARGS__)
#define DISPATCH_16(TENSOR, NAME, ...) \
  AT_DISPATCH_REDUCED_FLOATING_TYPES((TENSOR) ? (TENSOR)->scalar_type() : at::kBFloat16, NAME, __VA_ARGS__)
