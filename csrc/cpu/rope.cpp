// Rotary position embedding (arXiv 2104.09864), half-split pairing, from strided heads to contiguous ones.
#include "kernels.h"

namespace trimaran {
namespace {

template <typename T>
TRIMARAN_INLINE void rotate(const T* x, const float* cos, const float* sin, T* y, int64_t begin, int64_t end,
                            int64_t heads, int64_t d, int64_t stride_token, int64_t stride_head, int64_t period) {
  const int64_t half = d / 2;
  for (int64_t token = begin; token < end; ++token) {
    const float *c = cos + (token % period) * half, *s = sin + (token % period) * half;
    for (int64_t head = 0; head < heads; ++head) {
      const T *a = x + token * stride_token + head * stride_head, *b = a + half;
      T *ya = y + (token * heads + head) * d, *yb = ya + half;
#pragma omp simd
      for (int64_t i = 0; i < half; ++i) {
        const T ci = c[i], si = s[i];
        ya[i] = a[i] * ci - b[i] * si;
        yb[i] = b[i] * ci + a[i] * si;
      }
    }
  }
}

}  // namespace

TRIMARAN_CLONES void rope(const float* x, const float* cos, const float* sin, float* y, int64_t begin, int64_t end,
                          int64_t heads, int64_t d, int64_t stride_token, int64_t stride_head, int64_t period) {
  rotate(x, cos, sin, y, begin, end, heads, d, stride_token, stride_head, period);
}
TRIMARAN_CLONES void rope(const double* x, const float* cos, const float* sin, double* y, int64_t begin, int64_t end,
                          int64_t heads, int64_t d, int64_t stride_token, int64_t stride_head, int64_t period) {
  rotate(x, cos, sin, y, begin, end, heads, d, stride_token, stride_head, period);
}

}  // namespace trimaran
