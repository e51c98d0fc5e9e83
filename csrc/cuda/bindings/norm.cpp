#include "checks/norm.h"

#include "cuda_binding.h"

namespace {

// Without a mean it is RMSNorm.
void normalise(const Tensor& x, const OptionalTensor& residual, const Tensor& weight, const OptionalTensor& bias,
               double eps, const Tensor& y, const Tensor& total, const OptionalTensor& mean, const Tensor& rstd) {
  DISPATCH_ALL(x, "norm", [&] {
    using T = typename Stored<scalar_t>::type;
    using W = trimaran::Wide<T>;
    const trimaran::CudaNorm<T> call{.x = input<scalar_t>(x),
                                     .residual = optional_input<scalar_t>(residual),
                                     .weight = input<scalar_t>(weight),
                                     .bias = optional_input<scalar_t>(bias),
                                     .total = output<scalar_t>(total),
                                     .y = output<scalar_t>(y),
                                     .mean = mean.has_value() ? mean->data_ptr<W>() : nullptr,
                                     .rstd = rstd.data_ptr<W>(),
                                     .rows = rstd.numel(),
                                     .h = x.size(-1),
                                     .eps = eps};
    on_device_of(x, [&](cudaStream_t stream) { return trimaran::cuda_norm(call, stream); });
  });
}

// Without a mean it is RMSNorm, whose dbias has no elements.
std::tuple<Tensor, Tensor, Tensor> gradients(const Tensor& dy, const OptionalTensor& dtotal, const Tensor& x,
                                             const Tensor& weight, const OptionalTensor& mean, const Tensor& rstd) {
  const int64_t h = x.size(-1), rows = rstd.numel(), chunks = trimaran::norm_chunks(rows, h);
  const bool centred = mean.has_value();
  Tensor dx = at::empty_like(x), dweight = at::empty({h}, rstd.options());
  Tensor dbias = at::empty({centred ? h : 0}, rstd.options());
  Tensor dweight_parts = at::empty({chunks, h}, rstd.options());
  Tensor dbias_parts = at::empty({chunks, centred ? h : 0}, rstd.options());
  DISPATCH_ALL(x, "norm_backward", [&] {
    using T = typename Stored<scalar_t>::type;
    using W = trimaran::Wide<T>;
    const trimaran::CudaNormBackward<T> call{.dy = input<scalar_t>(dy),
                                             .x = input<scalar_t>(x),
                                             .weight = input<scalar_t>(weight),
                                             .dtotal = optional_input<scalar_t>(dtotal),
                                             .mean = optional_input<W>(mean),
                                             .rstd = rstd.const_data_ptr<W>(),
                                             .dx = output<scalar_t>(dx),
                                             .dweight_parts = dweight_parts.data_ptr<W>(),
                                             .dbias_parts = centred ? dbias_parts.data_ptr<W>() : nullptr,
                                             .dweight = dweight.data_ptr<W>(),
                                             .dbias = centred ? dbias.data_ptr<W>() : nullptr,
                                             .rows = rows,
                                             .h = h};
    on_device_of(x, [&](cudaStream_t stream) { return trimaran::cuda_norm_backward(call, stream); });
  });
  return {dx, dweight, dbias};
}

}  // namespace

TORCH_LIBRARY_IMPL(trimaran, TRIMARAN_CUDA_KEY, m) {
  m.impl("rms_norm", &rms_norm<normalise>);
  m.impl("layer_norm", &layer_norm<normalise>);
  m.impl("rms_norm_backward", &rms_norm_backward<gradients>);
  m.impl("layer_norm_backward", &layer_norm_backward<gradients>);
}
