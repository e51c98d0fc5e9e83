#include "checks/activation.h"

#include "cuda_binding.h"

namespace {

trimaran::Curve curve_of(trimaran::Activation kind) {
  using trimaran::Activation, trimaran::Curve;
  switch (kind) {
    case Activation::swiglu: return Curve::silu;
    case Activation::geglu:
    case Activation::gelu: return Curve::gelu;
    case Activation::geglu_tanh:
    case Activation::gelu_tanh: return Curve::gelu_tanh;
    case Activation::reglu:
    case Activation::relu: return Curve::relu;
    case Activation::squared_relu: return Curve::squared_relu;
  }
  TORCH_CHECK(false, "activation: a kind without a curve");
}

Tensor activation(const Tensor& x, const OptionalTensor& bias, std::string_view name) {
  const trimaran::Activation kind = activation_named(name);
  const ActivationShape shape = check_activation(kind, x, bias);
  Tensor y = activation_result(x, shape);
  DISPATCH_ALL(x, "activation", [&] {
    using T = typename Stored<scalar_t>::type;
    const trimaran::CudaActivation<T> call{.x = input<scalar_t>(x),
                                           .bias = optional_input<scalar_t>(bias),
                                           .y = output<scalar_t>(y),
                                           .rows = shape.rows,
                                           .width = shape.f,
                                           .kind = curve_of(kind),
                                           .gated = is_gated(kind)};
    on_device_of(x, [&](cudaStream_t stream) { return trimaran::cuda_activation(call, stream); });
  });
  return y;
}

std::tuple<Tensor, Tensor> activation_backward(const Tensor& dy, const Tensor& x, const OptionalTensor& bias,
                                               std::string_view name) {
  const trimaran::Activation kind = activation_named(name);
  const ActivationShape shape = check_activation_backward(kind, dy, x, bias);
  const auto sums = x.options().dtype(wide(x));
  const int64_t width = bias.has_value() ? x.size(-1) : 0;
  Tensor dx = at::empty_like(x), dbias = at::empty({width}, sums);
  Tensor parts = at::empty({trimaran::activation_chunks(shape.rows), width}, sums);
  DISPATCH_ALL(x, "activation_backward", [&] {
    using T = typename Stored<scalar_t>::type;
    using W = trimaran::Wide<T>;
    const trimaran::CudaActivationBackward<T> call{.dy = input<scalar_t>(dy),
                                                   .x = input<scalar_t>(x),
                                                   .bias = optional_input<scalar_t>(bias),
                                                   .dx = output<scalar_t>(dx),
                                                   .dbias_parts = bias.has_value() ? parts.data_ptr<W>() : nullptr,
                                                   .dbias = bias.has_value() ? dbias.data_ptr<W>() : nullptr,
                                                   .rows = shape.rows,
                                                   .width = shape.f,
                                                   .kind = curve_of(kind),
                                                   .gated = is_gated(kind)};
    on_device_of(x, [&](cudaStream_t stream) { return trimaran::cuda_activation_backward(call, stream); });
  });
  return {dx, dbias};
}

}  // namespace

TORCH_LIBRARY_IMPL(trimaran, TRIMARAN_CUDA_KEY, m) {
  m.impl("activation", &activation);
  m.impl("activation_backward", &activation_backward);
}
