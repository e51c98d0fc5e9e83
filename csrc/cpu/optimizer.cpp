// AdamW (arXiv 1711.05101) in one pass over parameter, gradient and moments; sums of squares for clipping and for
// Adafactor (arXiv 1804.04235).
#include "optimizer.h"

#include <cmath>

#include "half.h"

namespace trimaran {
namespace {

template <typename W, typename R>
TRIMARAN_INLINE void update(W* param, const W* grad, W* exp_avg, W* exp_avg_sq, R* rounded, int64_t begin, int64_t end,
                            AdamW a) {
  const W scale = W(a.grad_scale), mix1 = W(1 - a.beta1), beta2 = W(a.beta2), mix2 = W(1 - a.beta2), eps = W(a.eps);
  const W shrink = W(1 - a.lr * a.weight_decay), rate = W(a.lr / a.correction1);
  const W spread = W(1 / std::sqrt(a.correction2));
  const auto step = [=](int64_t i) __attribute__((always_inline)) {
    const W g = grad[i] * scale;
    const W first = exp_avg[i] + mix1 * (g - exp_avg[i]);
    const W second = exp_avg_sq[i] * beta2 + g * g * mix2;
    exp_avg[i] = first;
    exp_avg_sq[i] = second;
    return param[i] * shrink - rate * first / (std::sqrt(second) * spread + eps);
  };
  if (rounded == nullptr) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) param[i] = step(i);
  } else {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const W value = step(i);
      param[i] = value;
      narrow(static_cast<float>(value), rounded[i]);
    }
  }
}

template <typename T>
TRIMARAN_INLINE double squares(const T* x, int64_t begin, int64_t end) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = begin; i < end; ++i) {
    const double value = widen(x[i]);
    total += value * value;
  }
  return total;
}

template <typename W>
TRIMARAN_INLINE void matrix(const W* x, W* of_rows, W* of_columns, int64_t begin, int64_t end, int64_t columns) {
  for (int64_t row = begin; row < end; ++row) {
    const W* from = x + row * columns;
    W total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < columns; ++i) {
      const W square = from[i] * from[i];
      total += square;
      of_columns[i] += square;
    }
    of_rows[row] = total / static_cast<W>(columns);
  }
}

}  // namespace

#define TRIMARAN_ADAMW(W, R)                                                                                         \
  template <>                                                                                                        \
  TRIMARAN_CLONES void adamw(W* param, const W* grad, W* exp_avg, W* exp_avg_sq, R* rounded, int64_t begin,          \
                             int64_t end, AdamW a) {                                                                 \
    update(param, grad, exp_avg, exp_avg_sq, rounded, begin, end, a);                                                \
  }
#define TRIMARAN_SQUARES(T)                                                           \
  template <>                                                                         \
  TRIMARAN_CLONES double sum_of_squares(const T* x, int64_t begin, int64_t end) {     \
    return squares(x, begin, end);                                                    \
  }
#define TRIMARAN_MATRIX(W)                                                                                             \
  template <>                                                                                                          \
  TRIMARAN_CLONES void squares_of_matrix(const W* x, W* of_rows, W* of_columns, int64_t begin, int64_t end,            \
                                         int64_t columns) {                                                            \
    matrix(x, of_rows, of_columns, begin, end, columns);                                                               \
  }
TRIMARAN_ADAMW(float, BFloat16)
TRIMARAN_ADAMW(float, Half)
TRIMARAN_ADAMW(double, BFloat16)
TRIMARAN_ADAMW(double, Half)
TRIMARAN_SQUARES(float)
TRIMARAN_SQUARES(double)
TRIMARAN_SQUARES(BFloat16)
TRIMARAN_SQUARES(Half)
TRIMARAN_MATRIX(float)
TRIMARAN_MATRIX(double)

}  // namespace trimaran
