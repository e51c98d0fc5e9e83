// The local halves of vocabulary-parallel cross-entropy, row by row. T: float, double, BFloat16, Half.
#pragma once

#include <cstdint>

#include "wide.h"

namespace trimaran {

// Of one row of v logits: the largest, the sum of exp(logit - largest), and the sum of all.
template <typename T>
struct RowStats {
  Wide<T> max, sum, total;
};
template <typename T>
RowStats<T> cross_entropy_stats(const T* logits, int64_t v);

// logits <- factor * exp(logit - max - log_sum) - share, and target_share less at `target` (none where it is not in
// [0, v)). Computed wide, rounded once.
template <typename T>
void cross_entropy_grad(T* logits, int64_t v, Wide<T> max, Wide<T> log_sum, Wide<T> factor, Wide<T> share,
                        int64_t target, Wide<T> target_share);

}  // namespace trimaran
