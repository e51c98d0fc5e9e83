#include "activation.h"

#include "checks/activation.h"
#include "row_blocks.h"

namespace {

Tensor activation(const Tensor& x, const OptionalTensor& bias, std::string_view name) {
  const trimaran::Activation kind = activation_named(name);
  const ActivationShape shape = check_activation(kind, x, bias);
  const int64_t rows = shape.rows, f = shape.f;
  Tensor y = activation_result(x, shape);
  DISPATCH_ALL(x, "activation", [&] {
    at::parallel_for(0, rows, rows_grain(f), [&](int64_t begin, int64_t end) {
      trimaran::activation(kind, input<scalar_t>(x), optional_input<scalar_t>(bias), output<scalar_t>(y), begin, end,
                           f);
    });
  });
  return y;
}

std::tuple<Tensor, Tensor> activation_backward(const Tensor& dy, const Tensor& x, const OptionalTensor& bias,
                                               std::string_view name) {
  const trimaran::Activation kind = activation_named(name);
  const ActivationShape shape = check_activation_backward(kind, dy, x, bias);
  const int64_t rows = shape.rows, f = shape.f, width = x.size(-1);
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
