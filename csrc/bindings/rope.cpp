#include "rope.h"

#include "binding.h"
#include "checks/rope.h"

namespace {

void rope_(Tensor& x, const Tensor& cos, const Tensor& sin, int64_t heads, bool interleaved, bool inverse) {
  const int64_t period = check_rope(x, cos, sin, heads);
  const trimaran::RopeShape shape{.heads = heads,
                                  .half = cos.size(-1),
                                  .period = period,
                                  .interleaved = interleaved,
                                  .inverse = inverse};
  const Tensor c = cos.contiguous(), s = sin.contiguous();
  DISPATCH_ALL(x, "rope_", [&] {
    const trimaran::Heads<typename Stored<scalar_t>::type> all{output<scalar_t>(x), x.stride(1), x.stride(2)};
    at::parallel_for(0, x.size(0) * x.size(1), rows_grain(heads * shape.half * 2), [&](int64_t begin, int64_t end) {
      trimaran::rope(shape, all, c.const_data_ptr<float>(), s.const_data_ptr<float>(), begin, end);
    });
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trimaran, m) {
  m.def("rope_(Tensor(a!) x, Tensor cos, Tensor sin, int heads, bool interleaved, bool inverse) -> ()");
}

TORCH_LIBRARY_IMPL(trimaran, CPU, m) {
  m.impl("rope_", &rope_);
}
