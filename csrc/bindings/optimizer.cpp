#include "optimizer.h"

#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <vector>

#include "checks/optimizer.h"
#include "row_blocks.h"

namespace {

void adamw_(Tensor& param, const Tensor& grad, Tensor& exp_avg, Tensor& exp_avg_sq, OptionalTensor rounded,
            double lr, double beta1, double beta2, double eps, double weight_decay, const Tensor& step,
            const Tensor& grad_scale, const Tensor& keep) {
  check_adamw(param, grad, exp_avg, exp_avg_sq, rounded, {step, grad_scale, keep});
  if (keep.item<double>() == 0.0) return;
  const double t = step.item<double>();
  const trimaran::AdamW settings{lr,  beta1, beta2, eps, weight_decay, 1 - std::pow(beta1, t), 1 - std::pow(beta2, t),
                                 grad_scale.item<double>()};
  DISPATCH(param, "adamw_", [&] {
    using W = scalar_t;
    DISPATCH_16(rounded, "adamw_", [&] {
      auto* to = rounded ? output<scalar_t>(*rounded) : nullptr;
      at::parallel_for(0, param.numel(), kGrain, [&](int64_t begin, int64_t end) {
        trimaran::adamw(param.data_ptr<W>(), grad.const_data_ptr<W>(), exp_avg.data_ptr<W>(), exp_avg_sq.data_ptr<W>(),
                        to, begin, end, settings);
      });
    });
  });
}

Tensor sum_of_squares(const Tensor& x) {
  check_sum_of_squares(x);
  const int64_t n = x.numel(), blocks = (n + kGrain - 1) / kGrain;
  std::vector<double> partial(blocks, 0.0);  // added in order, so the result does not depend on the threads
  DISPATCH_ALL(x, "sum_of_squares", [&] {
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        partial[block] =
            trimaran::sum_of_squares(input<scalar_t>(x), block * kGrain, std::min(n, (block + 1) * kGrain));
    });
  });
  double total = 0;
  for (double part : partial) total += part;
  return at::scalar_tensor(total, x.options().dtype(at::kDouble));
}

std::tuple<Tensor, Tensor> means_of_squares(const Tensor& x) {
  check_means_of_squares(x);
  const int64_t rows = x.size(0), columns = x.size(1);
  Tensor of_rows = at::empty({rows}, x.options()), parts = at::zeros({row_blocks(rows), columns}, x.options());
  DISPATCH(x, "means_of_squares", [&] {
    for_each_row_block(rows, columns, [&](int64_t block, int64_t begin, int64_t end) {
      trimaran::squares_of_matrix(x.const_data_ptr<scalar_t>(), of_rows.data_ptr<scalar_t>(),
                                  parts.data_ptr<scalar_t>() + block * columns, begin, end, columns);
    });
  });
  return {of_rows, sum_blocks(parts).div_(static_cast<double>(rows))};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trimaran, m) {
  m.def(
      "adamw_(Tensor(a!) param, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!)? rounded, float lr, "
      "float beta1, float beta2, float eps, float weight_decay, Tensor step, Tensor grad_scale, Tensor keep) -> ()");
  m.def("sum_of_squares(Tensor x) -> Tensor");
  m.def("means_of_squares(Tensor x) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(trimaran, CPU, m) {
  m.impl("adamw_", &adamw_);
  m.impl("sum_of_squares", &sum_of_squares);
  m.impl("means_of_squares", &means_of_squares);
}
