// The local halves of vocabulary-parallel cross-entropy. The gradient overwrites the logits.
#include "vector_math.h"

#include <limits>

namespace trimaran {
namespace {

template <typename T>
TRIMARAN_INLINE void stats(const T* logits, const int64_t* targets, T* max, T* sum, T* target, int64_t begin,
                           int64_t end, int64_t v, int64_t start) {
  for (int64_t row = begin; row < end; ++row) {
    const T* l = logits + row * v;
    T largest = -std::numeric_limits<T>::infinity(), total = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < v; ++i) largest = l[i] > largest ? l[i] : largest;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < v; ++i) total += fast_exp(l[i] - largest);
    const int64_t local = targets[row] - start;
    max[row] = largest;
    sum[row] = total;
    target[row] = local >= 0 && local < v ? l[local] : T(0);
  }
}

template <typename T>
TRIMARAN_INLINE void grad(T* logits, const int64_t* targets, const T* max, const T* log_sum, const T* scale,
                          int64_t begin, int64_t end, int64_t v, int64_t start) {
  for (int64_t row = begin; row < end; ++row) {
    T* l = logits + row * v;
    const T largest = max[row], shift = log_sum[row], factor = scale[row];
#pragma omp simd
    for (int64_t i = 0; i < v; ++i) l[i] = fast_exp((l[i] - largest) - shift) * factor;
    const int64_t local = targets[row] - start;
    if (local >= 0 && local < v) l[local] -= factor;
  }
}

}  // namespace

TRIMARAN_CLONES void ce_stats(const float* logits, const int64_t* targets, float* max, float* sum, float* target,
                              int64_t begin, int64_t end, int64_t v, int64_t start) {
  stats(logits, targets, max, sum, target, begin, end, v, start);
}
TRIMARAN_CLONES void ce_stats(const double* logits, const int64_t* targets, double* max, double* sum, double* target,
                              int64_t begin, int64_t end, int64_t v, int64_t start) {
  stats(logits, targets, max, sum, target, begin, end, v, start);
}
TRIMARAN_CLONES void ce_grad(float* logits, const int64_t* targets, const float* max, const float* log_sum,
                             const float* scale, int64_t begin, int64_t end, int64_t v, int64_t start) {
  grad(logits, targets, max, log_sum, scale, begin, end, v, start);
}
TRIMARAN_CLONES void ce_grad(double* logits, const int64_t* targets, const double* max, const double* log_sum,
                             const double* scale, int64_t begin, int64_t end, int64_t v, int64_t start) {
  grad(logits, targets, max, log_sum, scale, begin, end, v, start);
}

}  // namespace trimaran
