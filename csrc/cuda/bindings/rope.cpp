#include "checks/rope.h"

#include "cuda_binding.h"

namespace {

void rope_(Tensor& x, const Tensor& cos, const Tensor& sin, int64_t heads, bool interleaved, bool inverse) {
  const int64_t period = check_rope(x, cos, sin, heads);
  const Tensor c = cos.contiguous(), s = sin.contiguous();
  DISPATCH_ALL(x, "rope_", [&] {
    const trimaran::CudaRope<typename Stored<scalar_t>::type> call{.x = output<scalar_t>(x),
                                                                   .cos = c.const_data_ptr<float>(),
                                                                   .sin = s.const_data_ptr<float>(),
                                                                   .tokens = x.size(0) * x.size(1),
                                                                   .heads = heads,
                                                                   .all_heads = x.size(2),
                                                                   .d = x.size(3),
                                                                   .rotary = 2 * cos.size(-1),
                                                                   .period = period,
                                                                   .interleaved = interleaved,
                                                                   .direction = inverse ? -1.0f : 1.0f};
    on_device_of(x, [&](cudaStream_t stream) { return trimaran::cuda_rope(call, stream); });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(trimaran, TRIMARAN_CUDA_KEY, m) {
  m.impl("rope_", &rope_);
}
