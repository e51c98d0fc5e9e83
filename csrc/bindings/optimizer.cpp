#include <ATen/ops/scalar_tensor.h>

#include <cmath>
#include <vector>

#include "binding.h"

namespace {

void adamw_(Tensor& param, const Tensor& grad, Tensor& exp_avg, Tensor& exp_avg_sq, double lr, double beta1,
            double beta2, double eps, double weight_decay, const Tensor& step, const Tensor& grad_scale,
            const Tensor& keep) {
  for (const Tensor& other : {grad, exp_avg, exp_avg_sq}) {
    same(param, other, "adamw_: parameter, gradient and moments");
    TORCH_CHECK(other.is_contiguous() && other.numel() == param.numel(), "adamw_: tensors of different shapes");
  }
  TORCH_CHECK(param.is_contiguous(), "adamw_: parameter is not contiguous");
  if (keep.item<double>() == 0.0) return;
  const double t = step.item<double>();
  const trimaran::AdamW settings{lr,  beta1, beta2, eps, weight_decay, 1 - std::pow(beta1, t), 1 - std::pow(beta2, t),
                                 grad_scale.item<double>()};
  DISPATCH(param, "adamw_", [&] {
    at::parallel_for(0, param.numel(), kGrain, [&](int64_t begin, int64_t end) {
      trimaran::adamw(param.data_ptr<scalar_t>(), grad.const_data_ptr<scalar_t>(), exp_avg.data_ptr<scalar_t>(),
                      exp_avg_sq.data_ptr<scalar_t>(), begin, end, settings);
    });
  });
}

Tensor sum_of_squares(const Tensor& x) {
  TORCH_CHECK(x.is_contiguous(), "sum_of_squares takes a contiguous tensor");
  const int64_t n = x.numel(), blocks = (n + kGrain - 1) / kGrain;
  std::vector<double> partial(blocks, 0.0);  // added in order, so the result does not depend on the threads
  DISPATCH(x, "sum_of_squares", [&] {
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        partial[block] =
            trimaran::sum_of_squares(x.const_data_ptr<scalar_t>(), block * kGrain, std::min(n, (block + 1) * kGrain));
    });
  });
  double total = 0;
  for (double part : partial) total += part;
  return at::scalar_tensor(total, x.options().dtype(at::kDouble));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trimaran, m) {
  m.def(
      "adamw_(Tensor(a!) param, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, float lr, float beta1, float "
      "beta2, float eps, float weight_decay, Tensor step, Tensor grad_scale, Tensor keep) -> ()");
  m.def("sum_of_squares(Tensor x) -> Tensor");
}

TORCH_LIBRARY_IMPL(trimaran, CPU, m) {
  m.impl("adamw_", &adamw_);
  m.impl("sum_of_squares", &sum_of_squares);
}
