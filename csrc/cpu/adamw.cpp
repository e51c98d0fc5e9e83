// AdamW (arXiv 1711.05101) in one pass over parameter, gradient and moments; and the sum of squares for clipping.
#include "kernels.h"

#include <cmath>

namespace trimaran {
namespace {

template <typename T>
TRIMARAN_INLINE void update(T* param, const T* grad, T* exp_avg, T* exp_avg_sq, int64_t begin, int64_t end, AdamW a) {
  const T scale = T(a.grad_scale), mix1 = T(1 - a.beta1), beta2 = T(a.beta2), mix2 = T(1 - a.beta2), eps = T(a.eps);
  const T shrink = T(1 - a.lr * a.weight_decay), rate = T(a.lr / a.correction1);
  const T spread = T(1 / std::sqrt(a.correction2));
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    const T g = grad[i] * scale;
    const T first = exp_avg[i] + mix1 * (g - exp_avg[i]);
    const T second = exp_avg_sq[i] * beta2 + g * g * mix2;
    exp_avg[i] = first;
    exp_avg_sq[i] = second;
    param[i] = param[i] * shrink - rate * first / (std::sqrt(second) * spread + eps);
  }
}

template <typename T>
TRIMARAN_INLINE double squares(const T* x, int64_t begin, int64_t end) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = begin; i < end; ++i) total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return total;
}

}  // namespace

TRIMARAN_CLONES void adamw(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, int64_t begin,
                           int64_t end, AdamW a) {
  update(param, grad, exp_avg, exp_avg_sq, begin, end, a);
}
TRIMARAN_CLONES void adamw(double* param, const double* grad, double* exp_avg, double* exp_avg_sq, int64_t begin,
                           int64_t end, AdamW a) {
  update(param, grad, exp_avg, exp_avg_sq, begin, end, a);
}
TRIMARAN_CLONES double sum_of_squares(const float* x, int64_t begin, int64_t end) { return squares(x, begin, end); }
TRIMARAN_CLONES double sum_of_squares(const double* x, int64_t begin, int64_t end) { return squares(x, begin, end); }

}  // namespace trimaran
