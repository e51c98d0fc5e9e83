// A row lies in the cache while it is read again, so memory is passed over once in each direction.
#include "softmax.h"

#include <algorithm>
#include <limits>

#include "half.h"
#include "vector_math.h"

namespace trimaran {
namespace {

constexpr int64_t kChunk = 2048;  // keys whose logits, then exponentials, are kept wide

template <typename T, typename W>
TRIMARAN_INLINE W logit(const SoftmaxRow<T>& row, const T* scores, int64_t j, W scale, W cap, W slope) {
  W x = widen(scores[j]) * scale;
  if (cap != W(0)) x = cap * fast_tanh(x / cap);
  if (row.bias != nullptr) x += widen(row.bias[j]);
  return x + slope * static_cast<W>(j - row.query);
}

// kPlain: the logit is the scaled score, and loops are free of what other rows need.
template <bool kPlain, typename T>
TRIMARAN_INLINE void forward(const SoftmaxRow<T>& row, int64_t low, int64_t high, const T* scores, T* probs) {
  using W = Wide<T>;
  const W scale = static_cast<W>(row.scale), cap = static_cast<W>(row.cap), slope = static_cast<W>(row.slope);
  W top = -std::numeric_limits<W>::infinity(), sum = 0, chunk[kChunk];
  for (int64_t start = low; start < high; start += kChunk) {  // sums are corrected when a later chunk is larger
    const int64_t count = std::min(kChunk, high - start);
    W largest = top, part = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < count; ++j) {
      const W x = kPlain ? widen(scores[start + j]) * scale : logit(row, scores, start + j, scale, cap, slope);
      chunk[j] = x;
      largest = x > largest ? x : largest;
    }
    const W origin = largest == -std::numeric_limits<W>::infinity() ? W(0) : largest;  // a chunk of nothing but -inf
#pragma omp simd reduction(+ : part)
    for (int64_t j = 0; j < count; ++j) part += chunk[j] = exp_below(chunk[j] - origin);
    sum = (largest == top ? sum : sum * exp_below(top - largest)) + part;
    top = largest;
  }
  const bool is_blank = top == -std::numeric_limits<W>::infinity();  // nothing but -inf: 0 everywhere; NaN stays
  const W base = is_blank ? W(0) : top, factor = is_blank ? sum * W(0) : W(1) / sum;
  if (high - low <= kChunk) {
#pragma omp simd
    for (int64_t j = low; j < high; ++j) narrow(chunk[j - low] * factor, probs[j]);
    return;
  }
#pragma omp simd
  for (int64_t j = low; j < high; ++j) {
    const W x = kPlain ? widen(scores[j]) * scale : logit(row, scores, j, scale, cap, slope);
    narrow(exp_below(x - base) * factor, probs[j]);
  }
}

template <typename T>
TRIMARAN_INLINE void forward(const SoftmaxRow<T>& row, int64_t keys, const T* scores, T* probs) {
  const int64_t low = std::max<int64_t>(row.first, 0), high = std::max(low, std::min(row.last + 1, keys));
  if (low < high) {
    if (row.cap == 0 && row.bias == nullptr && row.slope == 0) {
      forward<true>(row, low, high, scores, probs);
    } else {
      forward<false>(row, low, high, scores, probs);
    }
  }
  for (int64_t j = 0; j < std::min(low, keys); ++j) narrow(Wide<T>(0), probs[j]);
  for (int64_t j = high; j < keys; ++j) narrow(Wide<T>(0), probs[j]);
}

template <typename T>
TRIMARAN_INLINE void backward(SoftmaxRow<T> row, int64_t keys, const T* probs, const T* scores, const T* dprobs,
                              T* dscores) {
  using W = Wide<T>;
  const int64_t low = std::max<int64_t>(row.first, 0), high = std::max(low, std::min(row.last + 1, keys));
  const W scale = static_cast<W>(row.scale), cap = static_cast<W>(row.cap);
  W dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t j = low; j < high; ++j) dot += widen(probs[j]) * widen(dprobs[j]);
  if (cap == W(0)) {
#pragma omp simd
    for (int64_t j = low; j < high; ++j) narrow(widen(probs[j]) * (widen(dprobs[j]) - dot) * scale, dscores[j]);
  } else {
#pragma omp simd
    for (int64_t j = low; j < high; ++j) {
      const W bent = fast_tanh(widen(scores[j]) * scale / cap);
      narrow(widen(probs[j]) * (widen(dprobs[j]) - dot) * scale * (W(1) - bent * bent), dscores[j]);
    }
  }
  for (int64_t j = 0; j < low; ++j) narrow(W(0), dscores[j]);
  for (int64_t j = high; j < keys; ++j) narrow(W(0), dscores[j]);
}

}  // namespace

#define TRIMARAN_SOFTMAX(T)                                                                                    \
  template <>                                                                                                  \
  TRIMARAN_CLONES void masked_softmax(SoftmaxRow<T> row, int64_t keys, const T* scores, T* probs) {            \
    forward(row, keys, scores, probs);                                                                         \
  }                                                                                                            \
  template <>                                                                                                  \
  TRIMARAN_CLONES void masked_softmax_backward(SoftmaxRow<T> row, int64_t keys, const T* probs,                \
                                               const T* scores, const T* dprobs, T* dscores) {                 \
    backward(row, keys, probs, scores, dprobs, dscores);                                                       \
  }
TRIMARAN_SOFTMAX(float)
TRIMARAN_SOFTMAX(double)
TRIMARAN_SOFTMAX(BFloat16)
TRIMARAN_SOFTMAX(Half)

}  // namespace trimaran
