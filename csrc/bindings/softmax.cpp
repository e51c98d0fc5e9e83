#include "softmax.h"

#include <optional>

#include "binding.h"

namespace {

using OptionalTensor = std::optional<Tensor>;

// One call: scores [b, h, queries, keys], ranges int32 [1 or b, queries], slopes float32 [h], bias [h or 1, queries, keys].
struct Call {
  int64_t b, h, queries, keys;
  Tensor scores, first, last;
  OptionalTensor slopes, bias;
  double scale, cap;

  void check() const {
    TORCH_CHECK(scores.dim() == 4 && scores.is_contiguous(), "masked_softmax takes contiguous [b, h, queries, keys]");
    for (const Tensor& range : {first, last})
      TORCH_CHECK(range.scalar_type() == at::kInt && range.is_contiguous() && range.dim() == 2 &&
                      (range.size(0) == 1 || range.size(0) == b) && range.size(1) == queries,
                  "masked_softmax: ranges of keys must be int32 [1 or b, queries]");
    TORCH_CHECK(first.sizes() == last.sizes(), "masked_softmax: first and last keys of different shapes");
    TORCH_CHECK(cap >= 0, "masked_softmax: the cap is ", cap, ", not 0 or more");
    if (slopes)
      TORCH_CHECK(slopes->scalar_type() == at::kFloat && slopes->is_contiguous() && slopes->numel() == h,
                  "masked_softmax: one float32 slope a head");
    if (bias) {
      same(scores, *bias, "masked_softmax: scores and bias");
      TORCH_CHECK(bias->dim() == 3 && bias->is_contiguous() && (bias->size(0) == 1 || bias->size(0) == h) &&
                      bias->size(1) == queries && bias->size(2) == keys,
                  "masked_softmax: the bias is ", bias->sizes(), ", not [1 or ", h, ", ", queries, ", ", keys, "]");
    }
  }

  template <typename T>
  trimaran::SoftmaxRow<typename Stored<T>::type> row(int64_t index) const {
    const int64_t query = index % queries, head = index / queries % h, batch = index / queries / h;
    const int64_t range = (first.size(0) == 1 ? 0 : batch * queries) + query;
    const auto* biases = bias ? input<T>(*bias) + ((bias->size(0) == 1 ? 0 : head) * queries + query) * keys : nullptr;
    return {scale, cap, slopes ? slopes->const_data_ptr<float>()[head] : 0.0, biases, query,
            first.const_data_ptr<int32_t>()[range], last.const_data_ptr<int32_t>()[range]};
  }
};

Call call_of(const Tensor& scores, const Tensor& first, const Tensor& last, double scale, double cap,
             const OptionalTensor& slopes, const OptionalTensor& bias) {
  TORCH_CHECK(scores.dim() == 4, "masked_softmax takes [b, h, queries, keys]");
  const Call call{scores.size(0), scores.size(1), scores.size(2), scores.size(3), scores, first, last, slopes, bias,
                  scale,          cap};
  call.check();
  return call;
}

Tensor masked_softmax(const Tensor& scores, const Tensor& first, const Tensor& last, double scale, double cap,
                      const OptionalTensor& slopes, const OptionalTensor& bias) {
  const Call call = call_of(scores, first, last, scale, cap, slopes, bias);
  Tensor probs = at::empty_like(scores);
  DISPATCH_ALL(scores, "masked_softmax", [&] {
    at::parallel_for(0, call.b * call.h * call.queries, rows_grain(call.keys), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        trimaran::masked_softmax(call.row<scalar_t>(i), call.keys, input<scalar_t>(scores) + i * call.keys,
                                 output<scalar_t>(probs) + i * call.keys);
    });
  });
  return probs;
}

Tensor masked_softmax_backward(const Tensor& dprobs, const Tensor& probs, const Tensor& scores, const Tensor& first,
                               const Tensor& last, double scale, double cap) {
  const Call call = call_of(scores, first, last, scale, cap, {}, {});
  TORCH_CHECK(dprobs.is_contiguous() && probs.is_contiguous() && dprobs.sizes() == probs.sizes() &&
                  probs.sizes() == scores.sizes(),
              "masked_softmax_backward: gradient, probabilities and scores of different shapes");
  same(probs, dprobs, "masked_softmax_backward: probabilities and their gradient");
  Tensor dscores = at::empty_like(probs);
  DISPATCH_ALL(probs, "masked_softmax_backward", [&] {
    at::parallel_for(0, call.b * call.h * call.queries, rows_grain(call.keys), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = i * call.keys;
        trimaran::masked_softmax_backward(call.row<scalar_t>(i), call.keys, input<scalar_t>(probs) + at,
                                          input<scalar_t>(scores) + at, input<scalar_t>(dprobs) + at,
                                          output<scalar_t>(dscores) + at);
      }
    });
  });
  return dscores;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trimaran, m) {
  m.def(
      "masked_softmax(Tensor scores, Tensor first, Tensor last, float scale, float cap, Tensor? slopes, Tensor? bias) "
      "-> Tensor");
  m.def(
      "masked_softmax_backward(Tensor dprobs, Tensor probs, Tensor scores, Tensor first, Tensor last, float scale, "
      "float cap) -> Tensor");
}

TORCH_LIBRARY_IMPL(trimaran, CPU, m) {
  m.impl("masked_softmax", &masked_softmax);
  m.impl("masked_softmax_backward", &masked_softmax_backward);
}
