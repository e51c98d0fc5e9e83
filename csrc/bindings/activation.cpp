#include "activation.h"

#include "row_blocks.h"

namespace {

using trimaran::Activation;

Activation parse(std::string_view kind) {
  constexpr std::pair<std::string_view, Activation> kinds[] = {
      {"swiglu", Activation::swiglu}, {"geglu", Activation::geglu},         {"geglu_tanh", Activation::geglu_tanh},
      {"reglu", Activation::reglu},   {"gelu", Activation::gelu},           {"gelu_tanh", Activation::gelu_tanh},
      {"relu", Activation::relu},     {"squared_relu", Activation::squared_relu},
  };
  for (const auto& [name, value] : kinds)
    if (name == kind) return value;
  TORCH_CHECK(false, "activation: there is no ", kind);
}

// The width of the result, after a look at the arguments.
int64_t checked_width(Activation kind, const Tensor& x, const OptionalTensor& bias) {
  TORCH_CHECK(x.dim() >= 1 && x.is_contiguous(), "activation takes a contiguous tensor");
  const int64_t width = x.size(-1);
  TORCH_CHECK(!is_gated(kind) || width % 2 == 0, "activation: gate and up must be equally wide, but have ", width,
              " features together");
  if (bias.has_value()) {
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == width && bias->is_contiguous(), "activation: bias has ",
                bias->numel(), " elements, rows ", width);
    same(x, *bias, "activation: input and bias");
  }
  return is_gated(kind) ? width / 2 : width;
}

Tensor activation(const Tensor& x, const OptionalTensor& bias, std::string_view name) {
  const Activation kind = parse(name);
  const int64_t f = checked_width(kind, x, bias);
  auto shape = x.sizes().vec();
  shape.back() = f;
  Tensor y = at::empty(shape, x.options());
  DISPATCH_ALL(x, "activation", [&] {
    at::parallel_for(0, f == 0 ? 0 : y.numel() / f, rows_grain(f), [&](int64_t begin, int64_t end) {
      trimaran::activation(kind, input<scalar_t>(x), optional_input<scalar_t>(bias), output<scalar_t>(y), begin, end,
                           f);
    });
  });
  return y;
}

std::tuple<Tensor, Tensor> activation_backward(const Tensor& dy, const Tensor& x, const OptionalTensor& bias,
                                               std::string_view name) {
  const Activation kind = parse(name);
  const int64_t f = checked_width(kind, x, bias), width = x.size(-1), rows = f == 0 ? 0 : x.numel() / width;
  TORCH_CHECK(dy.is_contiguous() && dy.numel() == rows * f, "activation_backward: bad gradient");
  same(dy, x, "activation_backward: gradient and input");
  Tensor dx = at::empty_like(x);
  Tensor dbias = at::empty({bias.has_value() ? row_blocks(rows) : 0, width}, x.options().dtype(wide(x)));
  DISPATCH_ALL(x, "activation_backward", [&] {
    using T = typename Stored<scalar_t>::type;
    auto rows_of = [&](trimaran::Wide<T>* dbias_block, int64_t begin, int64_t end) {
      trimaran::activation_backward(kind, input<scalar_t>(dy), input<scalar_t>(x), optional_input<scalar_t>(bias),
                                    output<scalar_t>(dx), dbias_block, begin, end, f);
    };
    if (bias.has_value()) {
      for_each_row_block(rows, width, [&](int64_t block, int64_t begin, int64_t end) {
        rows_of(dbias.data_ptr<trimaran::Wide<T>>() + block * width, begin, end);
      });
    } else {
      at::parallel_for(0, rows, rows_grain(f), [&](int64_t begin, int64_t end) { rows_of(nullptr, begin, end); });
    }
  });
  return {dx, bias.has_value() ? sum_blocks(dbias) : at::empty({0}, dbias.options())};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trimaran, m) {
  // kind: a function of engine/ops/activation.py. dbias is float32 (float64 for float64), empty without a bias.
  m.def("activation(Tensor x, Tensor? bias, str kind) -> Tensor");
  m.def("activation_backward(Tensor dy, Tensor x, Tensor? bias, str kind) -> (Tensor dx, Tensor dbias)");
}

TORCH_LIBRARY_IMPL(trimaran, CPU, m) {
  m.impl("activation", &activation);
  m.impl("activation_backward", &activation_backward);
}
