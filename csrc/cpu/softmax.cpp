// A row lies in the cache while it is read three times, so memory is passed over once in each direction.
#include "softmax.h"

#include <algorithm>
#include <limits>

#include "half.h"
#include "vector_math.h"

namespace trimaran {
namespace {

constexpr int64_t kChunk = 512;  // logits of a 16-bit row are kept wide, chunk by chunk

template <typename T, typename W>
TRIMARAN_INLINE W logit(const SoftmaxRow<T>& row, const T* scores, int64_t j, W scale, W cap, W slope) {
  W x = widen(scores[j]) * scale;
  if (cap != W(0)) x = cap * fast_tanh(x / cap);
  if (row.bias != nullptr) x += widen(row.bias[j]);
  return x + slope * static_cast<W>(j - row.query);
}

template <typename T>
TRIMARAN_INLINE void forward(SoftmaxRow<T> row, int64_t keys, const T* scores, T* probs) {
  using W = Wide<T>;
  const int64_t low = std::max<int64_t>(row.first, 0), high = std::min(row.last + 1, keys);
  if (low >= high) {
    for (int64_t j = 0; j < keys; ++j) narrow(W(0), probs[j]);
    return;
  }
  const W scale = static_cast<W>(row.scale), cap = static_cast<W>(row.cap), slope = static_cast<W>(row.slope);
  W top = -std::numeric_limits<W>::infinity(), sum = 0, chunk[kChunk];
  const bool is_plain = cap == W(0) && row.bias == nullptr && slope == W(0);
  for (int64_t start = low; start < high; start += kChunk) {  // sums are corrected when a later chunk is larger
    const int64_t count = std::min(kChunk, high - start);
    if (is_plain) {
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) chunk[j] = widen(scores[start + j]) * scale;
    } else {
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) chunk[j] = logit(row, scores, start + j, scale, cap, slope);
    }
    W largest = top;
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < count; ++j) largest = chunk[j] > largest ? chunk[j] : largest;
    W part = 0;
    const W origin = largest;
#pragma omp simd reduction(+ : part)
    for (int64_t j = 0; j < count; ++j) part += fast_exp(chunk[j] - origin);
    sum = (largest == top ? sum : sum * fast_exp(top - largest)) + part;
    top = largest;
  }
  const W factor = W(1) / sum;
#pragma omp simd
  for (int64_t j = low; j < high; ++j) {
    const W x = is_plain ? widen(scores[j]) * scale : logit(row, scores, j, scale, cap, slope);
    narrow(fast_exp(x - top) * factor, probs[j]);
  }
  for (int64_t j = 0; j < low; ++j) narrow(W(0), probs[j]);
  for (int64_t j = high; j < keys; ++j) narrow(W(0), probs[j]);
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
