// A row is read from memory once; the passes over it find it in the first-level cache.
#include "norm.h"

#include <algorithm>
#include <cmath>

namespace trimaran {
namespace {

// The row to be normalised: x itself, or the sum of x and the residual, which is rounded before it is used, so that
// the backward pass sees the numbers that the forward pass saw.
template <typename T>
TRIMARAN_INLINE const T* row_of(const NormForward<T>& n, int64_t row) {
  const T* x = n.x + row * n.h;
  if (n.residual == nullptr) return x;
  const T* residual = n.residual + row * n.h;
  T* total = n.total + row * n.h;
  const int64_t h = n.h;
#pragma omp simd
  for (int64_t i = 0; i < h; ++i) narrow(widen(x[i]) + widen(residual[i]), total[i]);
  return total;
}

template <typename T>
TRIMARAN_INLINE void rms_forward(const NormForward<T>& n, int64_t begin, int64_t end) {
  using W = Wide<T>;
  const int64_t h = n.h;
  const T* weight = n.weight;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = row_of(n, row);
    T* y = n.y + row * h;
    W squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < h; ++i) squares += widen(x[i]) * widen(x[i]);
    const W rstd = W(1) / std::sqrt(squares / W(h) + W(n.eps));
    n.rstd[row] = rstd;
#pragma omp simd
    for (int64_t i = 0; i < h; ++i) narrow(widen(x[i]) * rstd * widen(weight[i]), y[i]);
  }
}

template <typename T>
TRIMARAN_INLINE void layer_forward(const NormForward<T>& n, int64_t begin, int64_t end) {
  using W = Wide<T>;
  const int64_t h = n.h;
  const T *weight = n.weight, *bias = n.bias;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = row_of(n, row);
    T* y = n.y + row * h;
    W sum = 0, squares = 0, rest = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < h; ++i) sum += widen(x[i]);
    const W near = sum / W(h);
#pragma omp simd reduction(+ : squares, rest)
    for (int64_t i = 0; i < h; ++i) {
      const W off = widen(x[i]) - near;
      squares += off * off;
      rest += off;
    }
    // A sum of values far from zero is rounded in large steps: what it missed is what the differences leave.
    const W shift = rest / W(h), mean = near + shift;
    const W rstd = W(1) / std::sqrt(std::max(squares / W(h) - shift * shift, W(0)) + W(n.eps));
    n.mean[row] = mean;
    n.rstd[row] = rstd;
    if (bias == nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < h; ++i) narrow((widen(x[i]) - mean) * rstd * widen(weight[i]), y[i]);
    } else {
#pragma omp simd
      for (int64_t i = 0; i < h; ++i)
        narrow((widen(x[i]) - mean) * rstd * widen(weight[i]) + widen(bias[i]), y[i]);
    }
  }
}

template <bool kHasTotal, typename T>
TRIMARAN_INLINE void rms_backward(const NormBackward<T>& n, Wide<T>* dweight, int64_t begin, int64_t end) {
  using W = Wide<T>;
  const int64_t h = n.h;
  const T* weight = n.weight;
  for (int64_t i = 0; i < h; ++i) dweight[i] = 0;
  for (int64_t row = begin; row < end; ++row) {
    const T *dy = n.dy + row * h, *x = n.x + row * h, *dtotal = n.dtotal + (kHasTotal ? row * h : 0);
    T* dx = n.dx + row * h;
    const W rstd = n.rstd[row];
    W dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < h; ++i) dot += widen(dy[i]) * widen(weight[i]) * widen(x[i]);
    const W pull = dot * rstd * rstd / W(h);
#pragma omp simd
    for (int64_t i = 0; i < h; ++i) {
      const W g = widen(dy[i]), wide = widen(x[i]);
      dweight[i] += g * wide * rstd;
      const W back = rstd * (g * widen(weight[i]) - wide * pull);
      narrow(kHasTotal ? back + widen(dtotal[i]) : back, dx[i]);
    }
  }
}

template <bool kHasTotal, typename T>
TRIMARAN_INLINE void layer_backward(const NormBackward<T>& n, Wide<T>* dweight, Wide<T>* dbias, int64_t begin,
                                    int64_t end) {
  using W = Wide<T>;
  const int64_t h = n.h;
  const T* weight = n.weight;
  for (int64_t i = 0; i < h; ++i) dweight[i] = dbias[i] = 0;
  for (int64_t row = begin; row < end; ++row) {
    const T *dy = n.dy + row * h, *x = n.x + row * h, *dtotal = n.dtotal + (kHasTotal ? row * h : 0);
    T* dx = n.dx + row * h;
    const W mean = n.mean[row], rstd = n.rstd[row];
    W sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
    for (int64_t i = 0; i < h; ++i) {
      const W g = widen(dy[i]) * widen(weight[i]);
      sum += g;
      dot += g * (widen(x[i]) - mean);
    }
    const W push = sum / W(h), pull = dot * rstd / W(h);
#pragma omp simd
    for (int64_t i = 0; i < h; ++i) {
      const W g = widen(dy[i]), normed = (widen(x[i]) - mean) * rstd;
      dweight[i] += g * normed;
      dbias[i] += g;
      const W back = rstd * (g * widen(weight[i]) - push - normed * pull);
      narrow(kHasTotal ? back + widen(dtotal[i]) : back, dx[i]);
    }
  }
}

}  // namespace

template <typename T>
TRIMARAN_CLONES void rms_norm(const NormForward<T>& n, int64_t begin, int64_t end) {
  rms_forward(n, begin, end);
}
template <typename T>
TRIMARAN_CLONES void layer_norm(const NormForward<T>& n, int64_t begin, int64_t end) {
  layer_forward(n, begin, end);
}
template <typename T>
TRIMARAN_CLONES void rms_norm_backward(const NormBackward<T>& n, Wide<T>* dweight, int64_t begin, int64_t end) {
  if (n.dtotal == nullptr) return rms_backward<false>(n, dweight, begin, end);
  rms_backward<true>(n, dweight, begin, end);
}
template <typename T>
TRIMARAN_CLONES void layer_norm_backward(const NormBackward<T>& n, Wide<T>* dweight, Wide<T>* dbias, int64_t begin,
                                         int64_t end) {
  if (n.dtotal == nullptr) return layer_backward<false>(n, dweight, dbias, begin, end);
  layer_backward<true>(n, dweight, dbias, begin, end);
}

#define TRIMARAN_NORM(T)                                                                                        \
  template void rms_norm(const NormForward<T>&, int64_t, int64_t);                                              \
  template void layer_norm(const NormForward<T>&, int64_t, int64_t);                                            \
  template void rms_norm_backward(const NormBackward<T>&, Wide<T>*, int64_t, int64_t);                          \
  template void layer_norm_backward(const NormBackward<T>&, Wide<T>*, Wide<T>*, int64_t, int64_t);
TRIMARAN_NORM(float)
TRIMARAN_NORM(double)
TRIMARAN_NORM(BFloat16)
TRIMARAN_NORM(Half)

}  // namespace trimaran
