#include "rope.h"

namespace trimaran {
namespace {

// One head: pair i is at [i * step] and [i * step + apart].
template <int64_t kStep, typename T>
TRIMARAN_INLINE void rotate(T* x, int64_t apart, const float* cos, const float* sin, Wide<T> sign, int64_t half) {
  using W = Wide<T>;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const W c = cos[i], s = sign * W(sin[i]);
    const W a = widen(x[i * kStep]), b = widen(x[i * kStep + apart]);
    narrow(a * c - b * s, x[i * kStep]);
    narrow(b * c + a * s, x[i * kStep + apart]);
  }
}

}  // namespace

template <typename T>
TRIMARAN_CLONES void rope(const RopeShape& shape, Heads<T> x, const float* cos, const float* sin, int64_t begin,
                          int64_t end) {
  const auto [heads, half, period, interleaved, inverse] = shape;
  const Wide<T> sign = inverse ? -1 : 1;
  for (int64_t token = begin; token < end; ++token) {
    const float *c = cos + (token % period) * half, *s = sin + (token % period) * half;
    for (int64_t head = 0; head < heads; ++head) {
      T* features = x.data + token * x.token + head * x.head;
      if (interleaved) {
        rotate<2>(features, 1, c, s, sign, half);
      } else {
        rotate<1>(features, half, c, s, sign, half);
      }
    }
  }
}

#define TRIMARAN_ROPE(T) \
  template void rope(const RopeShape&, Heads<T>, const float*, const float*, int64_t, int64_t);
TRIMARAN_ROPE(float)
TRIMARAN_ROPE(double)
TRIMARAN_ROPE(BFloat16)
TRIMARAN_ROPE(Half)

}  // namespace trimaran
