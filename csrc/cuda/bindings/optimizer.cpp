#include "checks/optimizer.h"

#include <ATen/ops/stack.h>

#include "cuda_binding.h"

namespace {

void adamw_(Tensor& param, const Tensor& grad, Tensor& exp_avg, Tensor& exp_avg_sq, OptionalTensor rounded, double lr,
            double beta1, double beta2, double eps, double weight_decay, const Tensor& step, const Tensor& grad_scale,
            const Tensor& keep) {
  check_adamw(param, grad, exp_avg, exp_avg_sq, rounded, {step, grad_scale, keep});
  const Tensor scalars = at::stack({step, grad_scale, keep}).to(at::kDouble);  // the kernel reads them on the device
  const double* scalar = scalars.const_data_ptr<double>();
  DISPATCH(param, "adamw_", [&] {
    using W = scalar_t;
    DISPATCH_16(rounded, "adamw_", [&] {
      using Rounded = typename Stored<scalar_t>::type;
      const trimaran::CudaAdamW<W, Rounded> call{.param = param.data_ptr<W>(),
                                                 .grad = grad.const_data_ptr<W>(),
                                                 .exp_avg = exp_avg.data_ptr<W>(),
                                                 .exp_avg_sq = exp_avg_sq.data_ptr<W>(),
                                                 .rounded = rounded ? output<scalar_t>(*rounded) : nullptr,
                                                 .step = scalar,
                                                 .grad_scale = scalar + 1,
                                                 .keep = scalar + 2,
                                                 .count = param.numel(),
                                                 .lr = lr,
                                                 .beta1 = beta1,
                                                 .beta2 = beta2,
                                                 .eps = eps,
                                                 .weight_decay = weight_decay};
      on_device_of(param, [&](cudaStream_t stream) { return trimaran::cuda_adamw(call, stream); });
    });
  });
}

Tensor sum_of_squares(const Tensor& x) {
  check_sum_of_squares(x);
  const auto sums = x.options().dtype(at::kDouble);
  Tensor sum = at::empty({}, sums), parts = at::empty({trimaran::square_parts(x.numel())}, sums);
  DISPATCH_ALL(x, "sum_of_squares", [&] {
    on_device_of(x, [&](cudaStream_t stream) {
      return trimaran::cuda_sum_of_squares(input<scalar_t>(x), x.numel(), parts.data_ptr<double>(),
                                           sum.data_ptr<double>(), stream);
    });
  });
  return sum;
}

std::tuple<Tensor, Tensor> means_of_squares(const Tensor& x) {
  check_means_of_squares(x);
  const int64_t rows = x.size(0), columns = x.size(1);
  Tensor of_rows = at::empty({rows}, x.options()), of_columns = at::empty({columns}, x.options());
  Tensor parts = at::empty({trimaran::square_mean_chunks(rows), columns}, x.options());
  DISPATCH(x, "means_of_squares", [&] {
    const trimaran::CudaSquareMeans<scalar_t> call{.x = x.const_data_ptr<scalar_t>(),
                                                   .of_rows = of_rows.data_ptr<scalar_t>(),
                                                   .of_columns = of_columns.data_ptr<scalar_t>(),
                                                   .parts = parts.data_ptr<scalar_t>(),
                                                   .rows = rows,
                                                   .columns = columns};
    on_device_of(x, [&](cudaStream_t stream) { return trimaran::cuda_square_means(call, stream); });
  });
  return {of_rows, of_columns};
}

}  // namespace

TORCH_LIBRARY_IMPL(trimaran, TRIMARAN_CUDA_KEY, m) {
  m.impl("adamw_", &adamw_);
  m.impl("sum_of_squares", &sum_of_squares);
  m.impl("means_of_squares", &means_of_squares);
}
