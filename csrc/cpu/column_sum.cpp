#include "column_sum.h"

#include <algorithm>

namespace trimaran {
namespace {

constexpr int64_t kTile = 64;  // columns summed side by side, in registers and first-level cache

template <typename T>
TRIMARAN_INLINE void sum(const T* x, T* out, int64_t rows, int64_t width, int64_t begin, int64_t end) {
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t count = std::min(kTile, end - first);
    double total[kTile] = {};
    for (int64_t row = 0; row < rows; ++row) {
      const T* xr = x + row * width + first;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) total[i] += xr[i];
    }
    for (int64_t i = 0; i < count; ++i) out[first + i] = static_cast<T>(total[i]);
  }
}

}  // namespace

TRIMARAN_CLONES void column_sum(const float* x, float* out, int64_t rows, int64_t width, int64_t begin, int64_t end) {
  sum(x, out, rows, width, begin, end);
}
TRIMARAN_CLONES void column_sum(const double* x, double* out, int64_t rows, int64_t width, int64_t begin, int64_t end) {
  sum(x, out, rows, width, begin, end);
}

}  // namespace trimaran
