#include "norm.h"

#include "checks/norm.h"
#include "row_blocks.h"

namespace {

// Without a mean it is RMSNorm.
void normalise(const Tensor& x, const OptionalTensor& residual, const Tensor& weight, const OptionalTensor& bias,
               double eps, const Tensor& y, const Tensor& total, const OptionalTensor& mean, const Tensor& rstd) {
  DISPATCH_ALL(x, "norm", [&] {
    using T = typename Stored<scalar_t>::type;
    using W = trimaran::Wide<T>;
    const trimaran::NormForward<T> norm{.x = input<scalar_t>(x),
                                        .residual = optional_input<scalar_t>(residual),
                                        .weight = input<scalar_t>(weight),
                                        .bias = optional_input<scalar_t>(bias),
                                        .y = output<scalar_t>(y),
                                        .total = output<scalar_t>(total),
                                        .mean = mean.has_value() ? mean->data_ptr<W>() : nullptr,
                                        .rstd = rstd.data_ptr<W>(),
                                        .h = x.size(-1),
                                        .eps = eps};
    at::parallel_for(0, rstd.numel(), rows_grain(x.size(-1)), [&](int64_t begin, int64_t end) {
      if (mean.has_value()) {
        trimaran::layer_norm(norm, begin, end);
      } else {
        trimaran::rms_norm(norm, begin, end);
      }
    });
  });
}

// Without a mean it is RMSNorm, whose dbias has no elements.
std::tuple<Tensor, Tensor, Tensor> gradients(const Tensor& dy, const OptionalTensor& dtotal, const Tensor& x,
                                             const Tensor& weight, const OptionalTensor& mean, const Tensor& rstd) {
  const int64_t h = x.size(-1), rows = rstd.numel();
  Tensor dx = at::empty_like(x), dweight = at::empty({row_blocks(rows), h}, rstd.options());
  Tensor dbias = at::empty({row_blocks(rows), mean.has_value() ? h : 0}, rstd.options());
  DISPATCH_ALL(x, "norm_backward", [&] {
    using T = typename Stored<scalar_t>::type;
    using W = trimaran::Wide<T>;
    const trimaran::NormBackward<T> norm{.dy = input<scalar_t>(dy),
                                         .dtotal = optional_input<scalar_t>(dtotal),
                                         .x = input<scalar_t>(x),
                                         .weight = input<scalar_t>(weight),
                                         .mean = optional_input<W>(mean),
                                         .rstd = rstd.const_data_ptr<W>(),
                                         .dx = output<scalar_t>(dx),
                                         .h = h};
    for_each_row_block(rows, h, [&](int64_t block, int64_t begin, int64_t end) {
      W* dweight_block = dweight.data_ptr<W>() + block * h;
      if (mean.has_value()) {
        trimaran::layer_norm_backward(norm, dweight_block, dbias.data_ptr<W>() + block * h, begin, end);
      } else {
        trimaran::rms_norm_backward(norm, dweight_block, begin, end);
      }
    });
  });
  return {dx, sum_blocks(dweight), sum_blocks(dbias)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trimaran, m) {
  // total is x + residual; it has no elements where there is no residual. Statistics: [..., 1], float32 or float64.
  m.def("rms_norm(Tensor x, Tensor? residual, Tensor weight, float eps) -> (Tensor y, Tensor total, Tensor rstd)");
  m.def(
      "layer_norm(Tensor x, Tensor? residual, Tensor weight, Tensor? bias, float eps) "
      "-> (Tensor y, Tensor total, Tensor mean, Tensor rstd)");
  m.def(
      "rms_norm_backward(Tensor dy, Tensor? dtotal, Tensor x, Tensor weight, Tensor rstd) "
      "-> (Tensor dx, Tensor dweight)");
  m.def(
      "layer_norm_backward(Tensor dy, Tensor? dtotal, Tensor x, Tensor weight, Tensor mean, Tensor rstd) "
      "-> (Tensor dx, Tensor dweight, Tensor dbias)");
}

TORCH_LIBRARY_IMPL(trimaran, CPU, m) {
  m.impl("rms_norm", &rms_norm<normalise>);
  m.impl("layer_norm", &layer_norm<normalise>);
  m.impl("rms_norm_backward", &rms_norm_backward<gradients>);
  m.impl("layer_norm_backward", &layer_norm_backward<gradients>);
}
