#pragma once

#include "checks/tensors.h"

// One call: scores [b, h, queries, keys], ranges int32 [1 or b, queries], slopes float32 [h], bias [h or 1, queries,
// keys].
struct SoftmaxCall {
  int64_t b, h, queries, keys;
  Tensor scores, first, last;
  OptionalTensor slopes, bias;
  double scale, cap;

  void check() const {
    TORCH_CHECK(scores.is_contiguous(), "masked_softmax takes contiguous [b, h, queries, keys]");
    for (const Tensor& range : {first, last}) {
      TORCH_CHECK(range.scalar_type() == at::kInt && range.is_contiguous() && range.dim() == 2 &&
                      (range.size(0) == 1 || range.size(0) == b) && range.size(1) == queries,
                  "masked_softmax: ranges of keys must be int32 [1 or b, queries]");
      on_one_device(scores, range, "masked_softmax: scores and ranges of keys");
    }
    TORCH_CHECK(first.sizes() == last.sizes(), "masked_softmax: first and last keys of different shapes");
    TORCH_CHECK(cap >= 0, "masked_softmax: the cap is ", cap, ", not 0 or more");
    if (slopes) {
      TORCH_CHECK(slopes->scalar_type() == at::kFloat && slopes->is_contiguous() && slopes->numel() == h,
                  "masked_softmax: one float32 slope a head");
      on_one_device(scores, *slopes, "masked_softmax: scores and slopes");
    }
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
