#include "cross_entropy.h"

#include <limits>

#include "half.h"
#include "vector_math.h"

namespace trimaran {
namespace {

template <typename T>
TRIMARAN_INLINE RowStats<T> stats(const T* logits, int64_t v) {
  using W = Wide<T>;
  W largest = -std::numeric_limits<W>::infinity(), sum = 0, total = 0;
#pragma omp simd reduction(max : largest) reduction(+ : total)
  for (int64_t i = 0; i < v; ++i) {
    const W x = widen(logits[i]);
    largest = x > largest ? x : largest;
    total += x;
  }
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < v; ++i) sum += fast_exp(widen(logits[i]) - largest);
  return {largest, sum, total};
}

template <typename T>
TRIMARAN_INLINE void grad(T* logits, int64_t v, Wide<T> max, Wide<T> log_sum, Wide<T> factor, Wide<T> share,
                          int64_t target, Wide<T> target_share) {
  using W = Wide<T>;
  const bool is_here = target >= 0 && target < v;
  const W own = is_here ? fast_exp((widen(logits[target]) - max) - log_sum) * factor - share - target_share : W(0);
#pragma omp simd
  for (int64_t i = 0; i < v; ++i)
    narrow(fast_exp((widen(logits[i]) - max) - log_sum) * factor - share, logits[i]);
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
