#include "rope.h"

namespace trimaran {
namespace {

// One head: pair i is at [i * step] and [i * step + apart].
template <int64_t kStep, typename T>
TRIMARAN_INLINE void rotate(const T* x, int64_t apart, const float* cos, const float* sin, Wide<T> sign, T* y,
                            int64_t half) {
  using W = Wide<T>;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const W c = cos[i], s = sign * W(sin[i]);
    const W a = widen(x[i * kStep]), b = widen(x[i * kStep + apart]);
    narrow(a * c - b * s, y[i * kStep]);
    narrow(b * c + a * s, y[i * kStep + apart]);
  }
}

}  // namespace

template <typename T>
TRIMARAN_CLONES void rope(const RopeShape& shape, Heads<const T> x, const float* cos, const float* sin, Heads<T> y,
                          int64_t begin, int64_t end) {
  const auto [heads, half, period, interleaved, inverse] = shape;
  const Wide<T> sign = inverse ? -1 : 1;
  for (int64_t token = begin; token < end; ++token) {
    const float *c = cos + (token % period) * half, *s = sin + (token % period) * half;
    for (int64_t head = 0; head < heads; ++head) {
      const T* from = x.data + token * x.token + head * x.head;
      T* to = y.data + token * y.token + head * y.head;
      if (interleaved) {
        rotate<2>(from, 1, c, s, sign, to, half);
      } else {
        rotate<1>(from, half, c, s, sign, to, half);
      }
    }
  }
}

#define TRIMARAN_ROPE(T) \
  template void rope(const RopeShape&, Heads<const T>, const float*, const float*, Heads<T>, int64_t, int64_t);
TRIMARAN_ROPE(float)
TRIMARAN_ROPE(double)
TRIMARAN_ROPE(BFloat16)
TRIMARAN_ROPE(Half)

}  // namespace trimaran
