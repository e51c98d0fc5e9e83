// RMSNorm (arXiv 1910.07467), forward and backward, one pass over memory each.
#include "kernels.h"

#include <cmath>

namespace trimaran {
namespace {

template <typename T>
TRIMARAN_INLINE void forward(const T* x, const T* w, T* y, T* rstd, int64_t begin, int64_t end, int64_t h, double eps) {
  for (int64_t row = begin; row < end; ++row) {
    const T* xr = x + row * h;
    T* yr = y + row * h;
    T squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < h; ++i) squares += xr[i] * xr[i];
    const T factor = T(1) / std::sqrt(squares / T(h) + T(eps));
    rstd[row] = factor;
#pragma omp simd
    for (int64_t i = 0; i < h; ++i) yr[i] = xr[i] * factor * w[i];
  }
}

template <typename T>
TRIMARAN_INLINE void backward(const T* dy, const T* x, const T* w, const T* rstd, T* dx, T* dw, int64_t begin,
                              int64_t end, int64_t h) {
  for (int64_t i = 0; i < h; ++i) dw[i] = 0;
  for (int64_t row = begin; row < end; ++row) {
    const T *dyr = dy + row * h, *xr = x + row * h;
    T* dxr = dx + row * h;
    const T factor = rstd[row];
    T dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < h; ++i) dot += dyr[i] * w[i] * xr[i];
    const T pull = dot * factor * factor / T(h);
#pragma omp simd
    for (int64_t i = 0; i < h; ++i) {
      dw[i] += dyr[i] * xr[i] * factor;
      dxr[i] = factor * (dyr[i] * w[i] - xr[i] * pull);
    }
  }
}

}  // namespace

TRIMARAN_CLONES void rms_norm(const float* x, const float* w, float* y, float* rstd, int64_t begin, int64_t end,
                              int64_t h, double eps) {
  forward(x, w, y, rstd, begin, end, h, eps);
}
TRIMARAN_CLONES void rms_norm(const double* x, const double* w, double* y, double* rstd, int64_t begin, int64_t end,
                              int64_t h, double eps) {
  forward(x, w, y, rstd, begin, end, h, eps);
}
TRIMARAN_CLONES void rms_norm_backward(const float* dy, const float* x, const float* w, const float* rstd, float* dx,
                                       float* dw, int64_t begin, int64_t end, int64_t h) {
  backward(dy, x, w, rstd, dx, dw, begin, end, h);
}
TRIMARAN_CLONES void rms_norm_backward(const double* dy, const double* x, const double* w, const double* rstd,
                                       double* dx, double* dw, int64_t begin, int64_t end, int64_t h) {
  backward(dy, x, w, rstd, dx, dw, begin, end, h);
}

}  // namespace trimaran
