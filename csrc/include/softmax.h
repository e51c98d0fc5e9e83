// Rows of attention scores to probabilities, and back.
#pragma once

#include <cstdint>

namespace trimaran {

// What turns score j of a row into a logit: cap * tanh(score * scale / cap) (without the cap when it is 0), plus
// bias[j] (nullptr: none), plus slope * (j - query). Keys outside [first, last] have probability 0.
template <typename T>
struct SoftmaxRow {
  double scale, cap, slope;
  const T* bias;
  int64_t query, first, last;
};

// probs of one row of `keys` scores; all 0 where no key, or nothing but -inf, is seen. `scores` and `probs` may be the
// same memory.
template <typename T>
void masked_softmax(SoftmaxRow<T> row, int64_t keys, const T* scores, T* probs);

// dscores from probs and dprobs; `scores` is read only where there is a cap.
template <typename T>
void masked_softmax_backward(SoftmaxRow<T> row, int64_t keys, const T* probs, const T* scores, const T* dprobs,
                             T* dscores);

}  // namespace trimaran
