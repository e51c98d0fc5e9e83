#include "binding.h"

namespace {

constexpr int64_t kBlockRows = 64;  // rows summed together into one partial weight gradient, whatever the threads

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  const int64_t h = x.size(-1);
  TORCH_CHECK(x.is_contiguous() && weight.is_contiguous(), "rms_norm needs contiguous tensors");
  TORCH_CHECK(weight.dim() == 1 && weight.size(0) == h, "rms_norm: weight has ", weight.numel(), " elements, rows ", h);
  same(x, weight, "rms_norm: input and weight");
  Tensor y = at::empty_like(x), rstd = at::empty(x.sizes().slice(0, x.dim() - 1), x.options());
  DISPATCH(x, "rms_norm", [&] {
    at::parallel_for(0, rstd.numel(), rows_grain(h), [&](int64_t begin, int64_t end) {
      trimaran::rms_norm(x.const_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(), y.data_ptr<scalar_t>(),
                         rstd.data_ptr<scalar_t>(), begin, end, h, eps);
    });
  });
  return {y, rstd.unsqueeze(-1)};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                             const Tensor& rstd) {
  const int64_t h = x.size(-1), rows = rstd.numel(), blocks = (rows + kBlockRows - 1) / kBlockRows;
  TORCH_CHECK(dy.is_contiguous() && x.is_contiguous() && dy.sizes() == x.sizes(), "rms_norm_backward: bad gradient");
  same(dy, x, "rms_norm_backward: gradient and input");
  Tensor dx = at::empty_like(x), partial = at::empty({blocks, h}, x.options());
  DISPATCH(x, "rms_norm_backward", [&] {
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        trimaran::rms_norm_backward(dy.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(),
                                    weight.const_data_ptr<scalar_t>(), rstd.const_data_ptr<scalar_t>(),
                                    dx.data_ptr<scalar_t>(), partial.data_ptr<scalar_t>() + block * h,
                                    block * kBlockRows, std::min(rows, (block + 1) * kBlockRows), h);
      }
    });
  });
  return {dx, partial.sum(0)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trimaran, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)");
  m.def("rms_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor rstd) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(trimaran, CPU, m) {
  m.impl("rms_norm", &rms_norm);
  m.impl("rms_norm_backward", &rms_norm_backward);
}
