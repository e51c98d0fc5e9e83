#include "checks/softmax.h"

#include "cuda_binding.h"

namespace {

trimaran::CudaScores shape_of(const SoftmaxCall& call) {
  return {.b = call.b,
          .heads = call.h,
          .queries = call.queries,
          .keys = call.keys,
          .ranges = call.first.size(0),
          .first = call.first.const_data_ptr<int32_t>(),
          .last = call.last.const_data_ptr<int32_t>(),
          .scale = call.scale,
          .cap = call.cap};
}

Tensor masked_softmax(const Tensor& scores, const Tensor& first, const Tensor& last, double scale, double cap,
                      const OptionalTensor& slopes, const OptionalTensor& bias) {
  const SoftmaxCall checked = softmax_call(scores, first, last, scale, cap, slopes, bias);
  Tensor probs = at::empty_like(scores);
  DISPATCH_ALL(scores, "masked_softmax", [&] {
    const trimaran::CudaSoftmax<typename Stored<scalar_t>::type> call{
        .scores = input<scalar_t>(scores),
        .bias = optional_input<scalar_t>(bias),
        .biases = bias.has_value() ? bias->size(0) : 0,
        .slopes = optional_input<float>(slopes),
        .probs = output<scalar_t>(probs),
        .shape = shape_of(checked)};
    on_device_of(scores, [&](cudaStream_t stream) { return trimaran::cuda_softmax(call, stream); });
  });
  return probs;
}

Tensor masked_softmax_backward(const Tensor& dprobs, const Tensor& probs, const Tensor& scores, const Tensor& first,
                               const Tensor& last, double scale, double cap) {
  const SoftmaxCall checked = softmax_backward_call(dprobs, probs, scores, first, last, scale, cap);
  Tensor dscores = at::empty_like(probs);
  DISPATCH_ALL(probs, "masked_softmax_backward", [&] {
    const trimaran::CudaSoftmaxBackward<typename Stored<scalar_t>::type> call{.dprobs = input<scalar_t>(dprobs),
                                                                              .probs = input<scalar_t>(probs),
                                                                              .scores = input<scalar_t>(scores),
                                                                              .dscores = output<scalar_t>(dscores),
                                                                              .shape = shape_of(checked)};
    on_device_of(probs, [&](cudaStream_t stream) { return trimaran::cuda_softmax_backward(call, stream); });
  });
  return dscores;
}

}  // namespace

TORCH_LIBRARY_IMPL(trimaran, TRIMARAN_CUDA_KEY, m) {
  m.impl("masked_softmax", &masked_softmax);
  m.impl("masked_softmax_backward", &masked_softmax_backward);
}
