// Normals, uniform numbers and dropout masks from Philox, in runs of consecutive elements of one stream.
#include "random.h"

#include <algorithm>

#include "half.h"
#include "philox.h"

namespace trimaran {
namespace {

#define TRIMARAN_ALWAYS __attribute__((always_inline))

constexpr int64_t kCounters = 64;  // drawn together: ten rounds over an array vectorise, those of one counter do not
constexpr int64_t kWords = 4 * kCounters;

// Words [4 * counter, 4 * (counter + count)) of the stream, count <= kCounters.
TRIMARAN_INLINE void draw(uint64_t counter, int64_t count, uint64_t key, uint32_t* words) {
  uint32_t lanes[4][kCounters];
  for (int64_t i = 0; i < count; ++i) {
    const Words w = philox(counter + i, key);
    for (int64_t lane = 0; lane < 4; ++lane) lanes[lane][i] = w.w[lane];
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t lane = 0; lane < 4; ++lane) words[4 * i + lane] = lanes[lane][i];
}

// Call use(offset in the run, words, count) for pieces of the run [first, first + count).
template <typename Use>
TRIMARAN_INLINE void for_words(uint64_t key, uint64_t first, int64_t count, Use use) {
  uint32_t words[kWords];
  int64_t done = 0;
  while (done < count) {
    const uint64_t at = first + done;
    const int64_t lane = at & 3, length = std::min<int64_t>(kWords - lane, count - done);
    draw(at >> 2, (lane + length + 3) / 4, key, words);
    use(done, words + lane, length);
    done += length;
  }
}

// Only one number in seven lies in a tail. The centre is computed for all, then the tails, gathered, in a second loop.
template <typename T>
TRIMARAN_INLINE void fill(T* out, uint64_t key, uint64_t first, int64_t count, double std, double mean) {
  for_words(key, first, count, [=](int64_t offset, const uint32_t* words, int64_t length) TRIMARAN_ALWAYS {
    T* piece = out + offset;
    int32_t where[kWords];
    double u[kWords], value[kWords];
    int64_t tails = 0;
    for (int64_t i = 0; i < length; ++i) u[i] = to_unit(words[i]);
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) piece[i] = static_cast<T>(normal_centre(u[i]) * std + mean);
    for (int64_t i = 0; i < length; ++i) {
      value[tails] = u[i];
      where[tails] = static_cast<int32_t>(i);
      tails += in_tail(u[i]);
    }
#pragma omp simd
    for (int64_t i = 0; i < tails; ++i) value[i] = normal_tail(value[i]) * std + mean;
    for (int64_t i = 0; i < tails; ++i) piece[where[i]] = static_cast<T>(value[i]);
  });
}

template <typename T>
TRIMARAN_INLINE void fill_evenly(T* out, uint64_t key, uint64_t first, int64_t count, double low, double high) {
  const double span = high - low;
  for_words(key, first, count, [=](int64_t offset, const uint32_t* words, int64_t length) TRIMARAN_ALWAYS {
    T* piece = out + offset;
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) piece[i] = static_cast<T>(low + span * to_unit(words[i]));
  });
}

template <typename T>
TRIMARAN_INLINE void drop(const T* x, const T* bias, const T* residual, T* y, uint64_t key, uint64_t first,
                          int64_t count, uint32_t threshold, double scale) {
  using W = Wide<T>;
  const W factor = static_cast<W>(scale);
  for_words(key, first, count, [=](int64_t offset, const uint32_t* words, int64_t length) TRIMARAN_ALWAYS {
    const T* from = x + offset;
    const T* shift = bias == nullptr ? from : bias + offset;
    const T* base = residual == nullptr ? from : residual + offset;
    T* to = y + offset;
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) {
      W value = widen(from[i]);
      if (bias != nullptr) value += widen(shift[i]);
      value = words[i] >= threshold ? value * factor : W(0);
      if (residual != nullptr) value = widen(base[i]) + value;
      narrow(value, to[i]);
    }
  });
}

}  // namespace

TRIMARAN_CLONES void normal_run(float* out, uint64_t key, uint64_t first, int64_t count, double std, double mean) {
  fill(out, key, first, count, std, mean);
}
TRIMARAN_CLONES void normal_run(double* out, uint64_t key, uint64_t first, int64_t count, double std, double mean) {
  fill(out, key, first, count, std, mean);
}
TRIMARAN_CLONES void uniform_run(float* out, uint64_t key, uint64_t first, int64_t count, double low, double high) {
  fill_evenly(out, key, first, count, low, high);
}
TRIMARAN_CLONES void uniform_run(double* out, uint64_t key, uint64_t first, int64_t count, double low, double high) {
  fill_evenly(out, key, first, count, low, high);
}
#define TRIMARAN_DROPOUT(T)                                                                                         \
  template <>                                                                                                       \
  TRIMARAN_CLONES void dropout_run(const T* x, const T* bias, const T* residual, T* y, uint64_t key, uint64_t first, \
                                   int64_t count, uint32_t threshold, double scale) {                               \
    drop(x, bias, residual, y, key, first, count, threshold, scale);                                                \
  }
TRIMARAN_DROPOUT(float)
TRIMARAN_DROPOUT(double)
TRIMARAN_DROPOUT(BFloat16)
TRIMARAN_DROPOUT(Half)

}  // namespace trimaran
