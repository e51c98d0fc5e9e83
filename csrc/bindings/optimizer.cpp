#include "optimizer.h"

#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <vector>

#include "binding.h"
#include "checks/optimizer.h"

namespace {

template <typename W>
void run_adamw(Tensor& param, const Tensor& grad, Tensor& exp_avg, Tensor& exp_avg_sq, OptionalTensor& rounded,
               const trimaran::AdamW& settings) {
  const auto run = [&](auto* to) {
    at::parallel_for(0, param.numel(), kGrain, [&](int64_t begin, int64_t end) {
      trimaran::adamw(param.data_ptr<W>(), grad.const_data_ptr<W>(), exp_avg.data_ptr<W>(), exp_avg_sq.data_ptr<W>(),
                      to, begin, end, settings);
    });
  };
  if (rounded && rounded->scalar_type() == at::kHalf) {
    run(output<at::Half>(*rounded));
  } else {
    run(rounded ? output<at::BFloat16>(*rounded) : nullptr);
  }
}

void adamw_(Tensor& param, const Tensor& grad, Tensor& exp_avg, Tensor& exp_avg_sq, OptionalTensor rounded,
            double lr, double beta1, double beta2, double eps, double weight_decay, const Tensor& step,
            const Tensor& grad_scale, const Tensor& keep) {
  check_adamw(param, grad, exp_avg, exp_avg_sq, rounded, {step, grad_scale, keep});
  if (keep.item<double>() == 0.0) return;
  const double t = step.item<double>();
  const trimaran::AdamW settings{lr,  beta1, beta2, eps, weight_decay, 1 - std::pow(beta1, t), 1 - std::pow(beta2, t),
                                 grad_scale.item<double>()};
  DISPATCH(param, "adamw_", [&] { run_adamw<scalar_t>(param, grad, exp_avg, exp_avg_sq, rounded, settings); });
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
  constexpr int64_t kRows = 64;  // summed together, whatever the threads
  const int64_t rows = x.size(0), columns = x.size(1), blocks = (rows + kRows - 1) / kRows;
  Tensor of_rows = at::empty({rows}, x.options()), parts = at::zeros({blocks, columns}, x.options());
  DISPATCH(x, "means_of_squares", [&] {
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        trimaran::squares_of_matrix(x.const_data_ptr<scalar_t>(), of_rows.data_ptr<scalar_t>(),
                                    parts.data_ptr<scalar_t>() + block * columns, block * kRows,
                                    std::min(rows, (block + 1) * kRows), columns);
    });
  });
  return {of_rows, parts.sum(0).div_(static_cast<double>(rows))};
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
