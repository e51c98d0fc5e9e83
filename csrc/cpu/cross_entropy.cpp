#include "cross_entropy.h"

#include <algorithm>
#include <limits>

#include "half.h"
#include "vector_math.h"

namespace trimaran {
namespace {

constexpr int64_t kChunk = 2048;  // of a row: memory sends the next one while exponentials of this one are summed

template <typename T>
TRIMARAN_INLINE RowStats<T> stats(const T* logits, int64_t v) {
  using W = Wide<T>;
  W largest = -std::numeric_limits<W>::infinity(), sum = 0, total = 0;
  for (int64_t start = 0; start < v; start += kChunk) {
    const T* chunk = logits + start;
    const int64_t count = std::min(kChunk, v - start);
    W top = largest, part = 0, all = 0;
#pragma omp simd reduction(max : top) reduction(+ : all)
    for (int64_t i = 0; i < count; ++i) {
      const W x = widen(chunk[i]);
      top = x > top ? x : top;
      all += x;
    }
    const W origin = top == -std::numeric_limits<W>::infinity() ? W(0) : top;  // -inf alone: exp(-inf - -inf) is NaN
#pragma omp simd reduction(+ : part)
    for (int64_t i = 0; i < count; ++i) part += exp_below(widen(chunk[i]) - origin);
    sum = (top == largest ? sum : sum * exp_below(largest - top)) + part;
    largest = top;
    total += all;
  }
  // Nothing but -inf sums to 0, what the other parts of the vocabulary then make of it; NaN stays.
  return {largest, largest == -std::numeric_limits<W>::infinity() ? sum * W(0) : sum, total};
}

template <typename T>
TRIMARAN_INLINE void grad(T* logits, int64_t v, Wide<T> max, Wide<T> log_sum, Wide<T> factor, Wide<T> share,
                          int64_t target, Wide<T> target_share) {
  using W = Wide<T>;
  const bool is_here = target >= 0 && target < v;
  const W own = is_here ? exp_below((widen(logits[target]) - max) - log_sum) * factor - share - target_share : W(0);
#pragma omp simd
  for (int64_t i = 0; i < v; ++i)
    narrow(exp_below((widen(logits[i]) - max) - log_sum) * factor - share, logits[i]);
  if (is_here) narrow(own, logits[target]);
}

}  // namespace

#define TRIMARAN_CROSS_ENTROPY(T)                                                                              \
  template <>                                                                                                  \
  TRIMARAN_CLONES RowStats<T> cross_entropy_stats(const T* logits, int64_t v) {                                \
    return stats(logits, v);                                                                                   \
  }                                                                                                            \
  template <>                                                                                                  \
  TRIMARAN_CLONES void cross_entropy_grad(T* logits, int64_t v, Wide<T> max, Wide<T> log_sum, Wide<T> factor,  \
                                          Wide<T> share, int64_t target, Wide<T> target_share) {               \
    grad(logits, v, max, log_sum, factor, share, target, target_share);                                        \
  }
TRIMARAN_CROSS_ENTROPY(float)
TRIMARAN_CROSS_ENTROPY(double)
TRIMARAN_CROSS_ENTROPY(BFloat16)
TRIMARAN_CROSS_ENTROPY(Half)

}  // namespace trimaran
