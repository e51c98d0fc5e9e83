#include "rope.h"

#include "binding.h"

namespace {

// Rows of the tables [s, r / 2] or [b, s, r / 2], after a look at them.
int64_t table_rows(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const int64_t b = x.size(0), s = x.size(1), half = cos.size(-1);
  TORCH_CHECK(2 * half <= x.size(3) && cos.sizes() == sin.sizes(), "rope: tables do not fit width ", x.size(3));
  TORCH_CHECK(cos.scalar_type() == at::kFloat && sin.scalar_type() == at::kFloat, "rope: tables must be float32");
  const int64_t rows = cos.dim() == 2 ? s : b * s;
  TORCH_CHECK((cos.dim() == 2 || cos.dim() == 3) && cos.numel() == rows * half, "rope: tables do not fit ", b, " x ", s,
              " positions");
  return std::max<int64_t>(1, rows);
}

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
  TORCH_CHECK(x.dim() == 4 && x.is_contiguous(), "rope_ takes a contiguous tensor [b, s, g, d]");
  TORCH_CHECK(0 <= heads && heads <= x.size(2), "rope_: cannot turn ", heads, " of ", x.size(2), " heads");
  const trimaran::RopeShape shape{.heads = heads,
                                  .half = cos.size(-1),
                                  .period = table_rows(x, cos, sin),
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
