#include "binding.h"

namespace {

Tensor swiglu(const Tensor& x) {
  TORCH_CHECK(x.is_contiguous() && x.size(-1) % 2 == 0, "swiglu takes contiguous [..., 2f]");
  const int64_t f = x.size(-1) / 2;
  auto shape = x.sizes().vec();
  shape.back() = f;
  Tensor y = at::empty(shape, x.options());
  DISPATCH(x, "swiglu", [&] {
    at::parallel_for(0, f == 0 ? 0 : y.numel() / f, rows_grain(f), [&](int64_t begin, int64_t end) {
      trimaran::swiglu(x.const_data_ptr<scalar_t>(), y.data_ptr<scalar_t>(), begin, end, f);
    });
  });
  return y;
}

Tensor swiglu_backward(const Tensor& dy, const Tensor& x) {
  const int64_t f = x.size(-1) / 2;
  TORCH_CHECK(x.is_contiguous() && dy.is_contiguous() && dy.numel() * 2 == x.numel(), "swiglu_backward: bad gradient");
  same(dy, x, "swiglu_backward: gradient and input");
  Tensor dx = at::empty_like(x);
  DISPATCH(x, "swiglu_backward", [&] {
    at::parallel_for(0, f == 0 ? 0 : dy.numel() / f, rows_grain(f), [&](int64_t begin, int64_t end) {
      trimaran::swiglu_backward(dy.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(), dx.data_ptr<scalar_t>(),
                                begin, end, f);
    });
  });
  return dx;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trimaran, m) {
  m.def("swiglu(Tensor x) -> Tensor");
  m.def("swiglu_backward(Tensor dy, Tensor x) -> Tensor");
}

TORCH_LIBRARY_IMPL(trimaran, CPU, m) {
  m.impl("swiglu", &swiglu);
  m.impl("swiglu_backward", &swiglu_backward);
}
