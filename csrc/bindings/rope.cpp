#include "rope.h"

#include "binding.h"
#include "checks/rope.h"

namespace {

template <typename scalar_t>
void rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& y, trimaran::RopeShape shape) {
  using T = typename Stored<scalar_t>::type;
  const Tensor c = cos.contiguous(), s = sin.contiguous();
  const trimaran::Heads<const T> from{input<scalar_t>(x), x.stride(1), x.stride(2)};
  const trimaran::Heads<T> to{output<scalar_t>(y), y.stride(1), y.stride(2)};
  at::parallel_for(0, x.size(0) * x.size(1), rows_grain(shape.heads * shape.half * 2), [&](int64_t begin, int64_t end) {
    trimaran::rope(shape, from, c.const_data_ptr<float>(), s.const_data_ptr<float>(), to, begin, end);
  });
}

Tensor& rope_(Tensor& x, const Tensor& cos, const Tensor& sin, int64_t heads, bool interleaved, bool inverse) {
  const int64_t period = check_rope(x, cos, sin, heads);
  const trimaran::RopeShape shape{.heads = heads,
                                  .half = cos.size(-1),
                                  .period = period,
                                  .interleaved = interleaved,
                                  .inverse = inverse};
  DISPATCH_ALL(x, "rope_", [&] { rotate<scalar_t>(x, cos, sin, x, shape); });
  return x;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trimaran, m) {
  m.def("rope_(Tensor(a!) x, Tensor cos, Tensor sin, int heads, bool interleaved, bool inverse) -> Tensor(a!)");
}

TORCH_LIBRARY_IMPL(trimaran, CPU, m) {
  m.impl("rope_", &rope_);
}
