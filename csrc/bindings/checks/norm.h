#pragma once

#include <initializer_list>
#include <tuple>

#include "checks/tensors.h"

inline void check_like(const char* op, const char* name, const OptionalTensor& like, const Tensor& x) {
  if (!like.has_value()) return;
  TORCH_CHECK(like->sizes() == x.sizes() && like->scalar_type() == x.scalar_type() && like->is_contiguous(), op, ": ",
              name, " must be contiguous and have shape ", x.sizes(), " and dtype ", x.scalar_type(), ", not ",
              like->sizes(), " and ", like->scalar_type());
  on_one_device(x, *like, op);
}

inline void check_rows_and_weight(const char* op, const Tensor& x, const Tensor& weight) {
  TORCH_CHECK(x.dim() >= 1 && x.is_contiguous() && weight.is_contiguous(), op, " needs contiguous tensors");
  TORCH_CHECK(weight.dim() == 1 && weight.size(0) == x.size(-1), op, ": weight has ", weight.numel(),
              " elements, rows ", x.size(-1));
  TORCH_CHECK(weight.scalar_type() == x.scalar_type(), op, ": input and weight must have one dtype, not ",
              x.scalar_type(), " and ", weight.scalar_type());
  on_one_device(x, weight, op);
}

inline void check_norm(const char* op, const Tensor& x, const OptionalTensor& residual, const Tensor& weight,
                       const OptionalTensor& bias = {}) {
  check_rows_and_weight(op, x, weight);
  check_like(op, "residual", residual, x);
  check_like(op, "bias", bias, weight);
}

// `statistics`: what the forward left, one number a row each.
inline void check_norm_backward(const char* op, const Tensor& dy, const OptionalTensor& dtotal, const Tensor& x,
                                const Tensor& weight, std::initializer_list<Tensor> statistics) {
  check_rows_and_weight(op, x, weight);
  check_like(op, "gradient", dy, x);
  check_like(op, "gradient of the sum", dtotal, x);
  for (const Tensor& statistic : statistics) {
    const int64_t rows = x.size(-1) == 0 ? statistic.numel() : x.numel() / x.size(-1);
    TORCH_CHECK(statistic.numel() == rows && statistic.scalar_type() == wide(x) && statistic.is_contiguous(), op,
                ": one ", wide(x), " number a row is needed");
    on_one_device(x, statistic, op);
  }
}

inline Tensor row_statistic(const Tensor& x) {
  auto shape = x.sizes().vec();
  shape.back() = 1;
  return at::empty(shape, x.options().dtype(wide(x)));
}

// Room for x + residual; no elements where there is no residual.
inline Tensor total_like(const Tensor& x, const OptionalTensor& residual) {
  return residual.has_value() ? at::empty_like(x) : at::empty({0}, x.options());
}

// The operators. normalise(x, residual, weight, bias, eps, y, total, mean, rstd) and gradients(dy, dtotal, x, weight,
// mean, rstd) -> (dx, dweight, dbias) run the kernels of a device; without a mean theirs are those of RMSNorm.

template <auto normalise>
std::tuple<Tensor, Tensor, Tensor> rms_norm(const Tensor& x, const OptionalTensor& residual, const Tensor& weight,
                                            double eps) {
  check_norm("rms_norm", x, residual, weight);
  Tensor y = at::empty_like(x), total = total_like(x, residual), rstd = row_statistic(x);
  normalise(x, residual, weight, {}, eps, y, total, {}, rstd);
  return {y, total, rstd};
}

template <auto normalise>
std::tuple<Tensor, Tensor, Tensor, Tensor> layer_norm(const Tensor& x, const OptionalTensor& residual,
                                                      const Tensor& weight, const OptionalTensor& bias, double eps) {
  check_norm("layer_norm", x, residual, weight, bias);
  Tensor y = at::empty_like(x), total = total_like(x, residual), mean = row_statistic(x), rstd = row_statistic(x);
  normalise(x, residual, weight, bias, eps, y, total, mean, rstd);
  return {y, total, mean, rstd};
}

template <auto gradients>
std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& dy, const OptionalTensor& dtotal, const Tensor& x,
                                             const Tensor& weight, const Tensor& rstd) {
  check_norm_backward("rms_norm_backward", dy, dtotal, x, weight, {rstd});
  auto [dx, dweight, none] = gradients(dy, dtotal, x, weight, {}, rstd);
  return {dx, dweight};
}

template <auto gradients>
std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& dy, const OptionalTensor& dtotal, const Tensor& x,
                                                       const Tensor& weight, const Tensor& mean, const Tensor& rstd) {
  check_norm_backward("layer_norm_backward", dy, dtotal, x, weight, {mean, rstd});
  return gradients(dy, dtotal, x, weight, mean, rstd);
}
