// SwiGLU (arXiv 2002.05202): silu(gate) * up; the backward pass computes the sigmoid again instead of keeping it.
#include "vector_math.h"

namespace trimaran {
namespace {

template <typename T>
TRIMARAN_INLINE void forward(const T* x, T* y, int64_t begin, int64_t end, int64_t f) {
  for (int64_t row = begin; row < end; ++row) {
    const T *gate = x + row * 2 * f, *up = gate + f;
    T* yr = y + row * f;
#pragma omp simd
    for (int64_t i = 0; i < f; ++i) yr[i] = gate[i] / (T(1) + fast_exp(-gate[i])) * up[i];
  }
}

template <typename T>
TRIMARAN_INLINE void backward(const T* dy, const T* x, T* dx, int64_t begin, int64_t end, int64_t f) {
  for (int64_t row = begin; row < end; ++row) {
    const T *gate = x + row * 2 * f, *up = gate + f, *dyr = dy + row * f;
    T *dgate = dx + row * 2 * f, *dup = dgate + f;
#pragma omp simd
    for (int64_t i = 0; i < f; ++i) {
      const T sigmoid = T(1) / (T(1) + fast_exp(-gate[i])), silu = gate[i] * sigmoid;
      dgate[i] = dyr[i] * up[i] * (sigmoid + silu * (T(1) - sigmoid));
      dup[i] = dyr[i] * silu;
    }
  }
}

}  // namespace

TRIMARAN_CLONES void swiglu(const float* x, float* y, int64_t begin, int64_t end, int64_t f) {
  forward(x, y, begin, end, f);
}
TRIMARAN_CLONES void swiglu(const double* x, double* y, int64_t begin, int64_t end, int64_t f) {
  forward(x, y, begin, end, f);
}
TRIMARAN_CLONES void swiglu_backward(const float* dy, const float* x, float* dx, int64_t begin, int64_t end,
                                     int64_t f) {
  backward(dy, x, dx, begin, end, f);
}
TRIMARAN_CLONES void swiglu_backward(const double* dy, const double* x, double* dx, int64_t begin, int64_t end,
                                     int64_t f) {
  backward(dy, x, dx, begin, end, f);
}

}  // namespace trimaran
