#include "softmax.h"

#include "binding.h"
#include "checks/softmax.h"

namespace {

// Row `index` of the scores [b * h * queries, keys].
template <typename T>
trimaran::SoftmaxRow<typename Stored<T>::type> row_of(const SoftmaxCall& call, int64_t index) {
  const auto& [b, h, queries, keys, scores, first, last, slopes, bias, scale, cap] = call;
  const int64_t query = index % queries, head = index / queries % h, batch = index / queries / h;
  const int64_t range = (first.size(0) == 1 ? 0 : batch * queries) + query;
  const auto* biases = bias ? input<T>(*bias) + ((bias->size(0) == 1 ? 0 : head) * queries + query) * keys : nullptr;
  return {scale, cap, slopes ? slopes->const_data_ptr<float>()[head] : 0.0, biases, query,
          first.const_data_ptr<int32_t>()[range], last.const_data_ptr<int32_t>()[range]};
}

Tensor masked_softmax(const Tensor& scores, const Tensor& first, const Tensor& last, double scale, double cap,
                      const OptionalTensor& slopes, const OptionalTensor& bias) {
  const SoftmaxCall call = softmax_call(scores, first, last, scale, cap, slopes, bias);
  Tensor probs = at::empty_like(scores);
  DISPATCH_ALL(scores, "masked_softmax", [&] {
    at::parallel_for(0, call.b * call.h * call.queries, rows_grain(call.keys), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        trimaran::masked_softmax(row_of<scalar_t>(call, i), call.keys, input<scalar_t>(scores) + i * call.keys,
                                 output<scalar_t>(probs) + i * call.keys);
    });
  });
  return probs;
}

Tensor masked_softmax_backward(const Tensor& dprobs, const Tensor& probs, const Tensor& scores, const Tensor& first,
                               const Tensor& last, double scale, double cap) {
  const SoftmaxCall call = softmax_backward_call(dprobs, probs, scores, first, last, scale, cap);
  Tensor dscores = at::empty_like(probs);
  DISPATCH_ALL(probs, "masked_softmax_backward", [&] {
    at::parallel_for(0, call.b * call.h * call.queries, rows_grain(call.keys), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = i * call.keys;
        trimaran::masked_softmax_backward(row_of<scalar_t>(call, i), call.keys, input<scalar_t>(probs) + at,
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
