#pragma once

#include "checks/key_ranges.h"

// One call: scores [b, h, queries, keys], ranges int32 [1 or b, queries], slopes float32 [h], bias [h or 1, queries,
// keys].
struct SoftmaxCall {
  int64_t b, h, queries, keys;
  Tensor scores, first, last;
  OptionalTensor slopes, bias;
  double scale, cap;

  void check() const {
    TORCH_CHECK(scores.is_contiguous(), "masked_softmax takes contiguous [b, h, queries, keys]");
    check_key_ranges("masked_softmax", scores, first, last, b, queries);
    check_slopes("masked_softmax", scores, slopes, h);
    TORCH_CHECK(cap >= 0, "masked_softmax: the cap is ", cap, ", not 0 or more");
    if (bias) {
      same(scores, *bias, "masked_softmax: scores and bias");
      TORCH_CHECK(bias->dim() == 3 && bias->is_contiguous() && (bias->size(0) == 1 || bias->size(0) == h) &&
                      bias->size(1) == queries && bias->size(2) == keys,
                  "masked_softmax: the bias is ", bias->sizes(), ", not [1 or ", h, ", ", queries, ", ", keys, "]");
    }
  }
};

inline SoftmaxCall softmax_call(const Tensor& scores, const Tensor& first, const Tensor& last, double scale, double cap,
                                const OptionalTensor& slopes, const OptionalTensor& bias) {
  TORCH_CHECK(scores.dim() == 4, "masked_softmax takes [b, h, queries, keys]");
  const SoftmaxCall call{scores.size(0), scores.size(1), scores.size(2), scores.size(3), scores, first, last, slopes,
                         bias,           scale,          cap};
  call.check();
  return call;
}

inline SoftmaxCall softmax_backward_call(const Tensor& dprobs, const Tensor& probs, const Tensor& scores,
                                         const Tensor& first, const Tensor& last, double scale, double cap) {
  const SoftmaxCall call = softmax_call(scores, first, last, scale, cap, {}, {});
  TORCH_CHECK(dprobs.is_contiguous() && probs.is_contiguous() && dprobs.sizes() == probs.sizes() &&
                  probs.sizes() == scores.sizes(),
              "masked_softmax_backward: gradient, probabilities and scores of different shapes");
  same(probs, dprobs, "masked_softmax_backward: probabilities and their gradient");
  same(probs, scores, "masked_softmax_backward: probabilities and scores");
  return call;
}
