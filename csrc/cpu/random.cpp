// Normals and dropout masks from Philox, in runs of consecutive elements of one stream.
#include "kernels.h"
#include "philox.h"

#include <algorithm>

namespace trimaran {
namespace {

constexpr int64_t kCounters = 64;  // counters drawn together: ten rounds over an array vectorise, one counter does not

// Words [4 * counter, 4 * (counter + kCounters)) of the stream.
TRIMARAN_INLINE void draw(uint64_t counter, uint64_t key, uint32_t* words) {
#pragma omp simd
  for (int64_t i = 0; i < kCounters; ++i) {
    const Words w = philox(counter + i, key);
    words[4 * i] = w.w[0];
    words[4 * i + 1] = w.w[1];
    words[4 * i + 2] = w.w[2];
    words[4 * i + 3] = w.w[3];
  }
}

// Call use(offset in the run, words, count) for pieces of the run [first, first + count).
template <typename Use>
TRIMARAN_INLINE void for_words(uint64_t key, uint64_t first, int64_t count, Use use) {
  uint32_t words[4 * kCounters];
  int64_t done = 0;
  while (done < count) {
    const uint64_t at = first + done;
    const int64_t lane = at & 3, length = std::min<int64_t>(4 * kCounters - lane, count - done);
    draw(at >> 2, key, words);
    use(done, words + lane, length);
    done += length;
  }
}

template <typename T>
TRIMARAN_INLINE void fill(T* out, uint64_t key, uint64_t first, int64_t count, double std, double mean) {
  for_words(key, first, count, [=](int64_t offset, const uint32_t* words, int64_t length) __attribute__((always_inline)) {
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) out[offset + i] = static_cast<T>(to_normal(words[i]) * std + mean);
  });
}

template <typename T>
TRIMARAN_INLINE void drop(const T* x, T* y, uint64_t key, uint64_t first, int64_t count, uint32_t threshold,
                          double scale) {
  const T factor = static_cast<T>(scale);
  for_words(key, first, count, [=](int64_t offset, const uint32_t* words, int64_t length) __attribute__((always_inline)) {
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) y[offset + i] = words[i] >= threshold ? x[offset + i] * factor : T(0);
  });
}

}  // namespace

TRIMARAN_CLONES void normal_run(float* out, uint64_t key, uint64_t first, int64_t count, double std, double mean) {
  fill(out, key, first, count, std, mean);
}
TRIMARAN_CLONES void normal_run(double* out, uint64_t key, uint64_t first, int64_t count, double std, double mean) {
  fill(out, key, first, count, std, mean);
}
TRIMARAN_CLONES void dropout_run(const float* x, float* y, uint64_t key, uint64_t first, int64_t count,
                                 uint32_t threshold, double scale) {
  drop(x, y, key, first, count, threshold, scale);
}
TRIMARAN_CLONES void dropout_run(const double* x, double* y, uint64_t key, uint64_t first, int64_t count,
                                 uint32_t threshold, double scale) {
  drop(x, y, key, first, count, threshold, scale);
}

}  // namespace trimaran
