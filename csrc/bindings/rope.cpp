#include "binding.h"

namespace {

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  TORCH_CHECK(x.dim() == 4 && x.stride(3) == 1, "rope takes [b, s, heads, d] with adjacent features");
  const int64_t b = x.size(0), s = x.size(1), heads = x.size(2), d = x.size(3);
  TORCH_CHECK(d % 2 == 0 && cos.size(-1) == d / 2 && cos.sizes() == sin.sizes(), "rope: tables do not fit width ", d);
  TORCH_CHECK(cos.scalar_type() == at::kFloat && sin.scalar_type() == at::kFloat, "rope: tables must be float32");
  const int64_t period = cos.dim() == 2 ? s : b * s;
  TORCH_CHECK(cos.numel() == period * (d / 2), "rope: tables do not fit ", b, " x ", s, " positions");
  const Tensor source = x.stride(0) == s * x.stride(1) || b == 1 ? x : x.contiguous();
  const Tensor c = cos.contiguous(), n = sin.contiguous();
  Tensor y = at::empty({b, s, heads, d}, x.options());
  DISPATCH(x, "rope", [&] {
    at::parallel_for(0, b * s, rows_grain(heads * d), [&](int64_t begin, int64_t end) {
      trimaran::rope(source.const_data_ptr<scalar_t>(), c.const_data_ptr<float>(), n.const_data_ptr<float>(),
                     y.data_ptr<scalar_t>(), begin, end, heads, d, source.stride(1), source.stride(2),
                     std::max<int64_t>(1, period));
    });
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trimaran, m) {
  m.def("rope(Tensor x, Tensor cos, Tensor sin) -> Tensor");
}

TORCH_LIBRARY_IMPL(trimaran, CPU, m) {
  m.impl("rope", &rope);
}
