#include "norm.h"

#include "checks/norm.h"
#include "row_blocks.h"

namespace {

std::tuple<Tensor, Tensor, Tensor> rms_norm(const Tensor& x, const OptionalTensor& residual, const Tensor& weight,
                                            double eps) {
  check_norm("rms_norm", x, residual, weight);
  const int64_t h = x.size(-1);
  Tensor y = at::empty_like(x), total = total_like(x, residual), rstd = row_statistic(x);
  DISPATCH_ALL(x, "rms_norm", [&] {
    using T = typename Stored<scalar_t>::type;
    const trimaran::NormForward<T> norm{.x = input<scalar_t>(x),
                                        .residual = optional_input<scalar_t>(residual),
                                        .weight = input<scalar_t>(weight),
                                        .bias = nullptr,
                                        .y = output<scalar_t>(y),
                                        .total = output<scalar_t>(total),
                                        .mean = nullptr,
                                        .rstd = rstd.data_ptr<trimaran::Wide<T>>(),
                                        .h = h,
                                        .eps = eps};
    at::parallel_for(0, rstd.numel(), rows_grain(h),
                     [&](int64_t begin, int64_t end) { trimaran::rms_norm(norm, begin, end); });
  });
  return {y, total, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_norm(const Tensor& x, const OptionalTensor& residual,
                                                      const Tensor& weight, const OptionalTensor& bias, double eps) {
  check_norm("layer_norm", x, residual, weight, bias);
  const int64_t h = x.size(-1);
  Tensor y = at::empty_like(x), total = total_like(x, residual), mean = row_statistic(x), rstd = row_statistic(x);
  DISPATCH_ALL(x, "layer_norm", [&] {
    using T = typename Stored<scalar_t>::type;
    const trimaran::NormForward<T> norm{.x = input<scalar_t>(x),
                                        .residual = optional_input<scalar_t>(residual),
                                        .weight = input<scalar_t>(weight),
                                        .bias = optional_input<scalar_t>(bias),
                                        .y = output<scalar_t>(y),
                                        .total = output<scalar_t>(total),
                                        .mean = mean.data_ptr<trimaran::Wide<T>>(),
                                        .rstd = rstd.data_ptr<trimaran::Wide<T>>(),
                                        .h = h,
                                        .eps = eps};
    at::parallel_for(0, rstd.numel(), rows_grain(h),
                     [&](int64_t begin, int64_t end) { trimaran::layer_norm(norm, begin, end); });
  });
  return {y, total, mean, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& dy, const OptionalTensor& dtotal, const Tensor& x,
                                             const Tensor& weight, const Tensor& rstd) {
  check_norm_backward("rms_norm_backward", dy, dtotal, x, weight, {rstd});
  const int64_t h = x.size(-1), rows = rstd.numel();
  Tensor dx = at::empty_like(x), dweight = at::empty({row_blocks(rows), h}, rstd.options());
  DISPATCH_ALL(x, "rms_norm_backward", [&] {
    using T = typename Stored<scalar_t>::type;
    using W = trimaran::Wide<T>;
    const trimaran::NormBackward<T> norm{.dy = input<scalar_t>(dy),
                                         .dtotal = optional_input<scalar_t>(dtotal),
                                         .x = input<scalar_t>(x),
                                         .weight = input<scalar_t>(weight),
                                         .mean = nullptr,
                                         .rstd = rstd.const_data_ptr<W>(),
                                         .dx = output<scalar_t>(dx),
                                         .h = h};
    for_each_row_block(rows, h, [&](int64_t block, int64_t begin, int64_t end) {
      trimaran::rms_norm_backward(norm, dweight.data_ptr<W>() + block * h, begin, end);
    });
  });
  return {dx, sum_blocks(dweight)};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& dy, const OptionalTensor& dtotal, const Tensor& x,
                                                       const Tensor& weight, const Tensor& mean, const Tensor& rstd) {
  check_norm_backward("layer_norm_backward", dy, dtotal, x, weight, {mean, rstd});
  const int64_t h = x.size(-1), rows = rstd.numel();
  Tensor dx = at::empty_like(x), dweight = at::empty({row_blocks(rows), h}, rstd.options());
  Tensor dbias = at::empty_like(dweight);
  DISPATCH_ALL(x, "layer_norm_backward", [&] {
    using T = typename Stored<scalar_t>::type;
    using W = trimaran::Wide<T>;
    const trimaran::NormBackward<T> norm{.dy = input<scalar_t>(dy),
                                         .dtotal = optional_input<scalar_t>(dtotal),
                                         .x = input<scalar_t>(x),
                                         .weight = input<scalar_t>(weight),
                                         .mean = mean.const_data_ptr<W>(),
                                         .rstd = rstd.const_data_ptr<W>(),
                                         .dx = output<scalar_t>(dx),
                                         .h = h};
    for_each_row_block(rows, h, [&](int64_t block, int64_t begin, int64_t end) {
      trimaran::layer_norm_backward(norm, dweight.data_ptr<W>() + block * h, dbias.data_ptr<W>() + block * h, begin,
                                    end);
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
  m.impl("rms_norm", &rms_norm);
  m.impl("layer_norm", &layer_norm);
  m.impl("rms_norm_backward", &rms_norm_backward);
  m.impl("layer_norm_backward", &layer_norm_backward);
}
