#pragma once

#include <string_view>
#include <utility>

#include "activation_kind.h"
#include "checks/tensors.h"

inline trimaran::Activation activation_named(std::string_view kind) {
  using trimaran::Activation;
  constexpr std::pair<std::string_view, Activation> kinds[] = {
      {"swiglu", Activation::swiglu}, {"geglu", Activation::geglu},         {"geglu_tanh", Activation::geglu_tanh},
      {"reglu", Activation::reglu},   {"gelu", Activation::gelu},           {"gelu_tanh", Activation::gelu_tanh},
      {"relu", Activation::relu},     {"squared_relu", Activation::squared_relu},
  };
  for (const auto& [name, value] : kinds)
    if (name == kind) return value;
  TORCH_CHECK(false, "activation: there is no ", kind);
}

// Results are [rows, f]; rows of the input are twice as long where there is a gate.
struct ActivationShape {
  int64_t rows, f;
};

inline ActivationShape check_activation(trimaran::Activation kind, const Tensor& x, const OptionalTensor& bias) {
  TORCH_CHECK(x.dim() >= 1 && x.is_contiguous(), "activation takes a contiguous tensor");
  const int64_t width = x.size(-1);
  TORCH_CHECK(!is_gated(kind) || width % 2 == 0, "activation: gate and up must be equally wide, but have ", width,
              " features together");
  if (bias.has_value()) {
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == width && bias->is_contiguous(), "activation: bias has ",
                bias->numel(), " elements, rows ", width);
    same(x, *bias, "activation: input and bias");
  }
  return {width == 0 ? 0 : x.numel() / width, is_gated(kind) ? width / 2 : width};
}

inline ActivationShape check_activation_backward(trimaran::Activation kind, const Tensor& dy, const Tensor& x,
                                                 const OptionalTensor& bias) {
  const ActivationShape shape = check_activation(kind, x, bias);
  TORCH_CHECK(dy.is_contiguous() && dy.numel() == shape.rows * shape.f, "activation_backward: a gradient of shape ",
              dy.sizes(), " for input of shape ", x.sizes());
  same(dy, x, "activation_backward: gradient and input");
  return shape;
}

inline Tensor activation_result(const Tensor& x, ActivationShape shape) {
  auto sizes = x.sizes().vec();
  sizes.back() = shape.f;
  return at::empty(sizes, x.options());
}
