#include "attention.h"

#include <cmath>
#include <limits>
#include <vector>

#include "half.h"
#include "tile.h"
#include "vector_math.h"

namespace trimaran {
namespace {

// Queries and keys of a block at most: its operands and scores fit into 512 KiB of cache.
constexpr int64_t kQueries = kQueryBlock, kKeys = 256;
int64_t keys_of_block(int64_t d) { return d > 64 ? kKeys / 2 : kKeys; }

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Copies of a head's rows in the type that is computed in, features padded with zeros to whole panels.
template <typename T, typename W>
TRIMARAN_INLINE void copy_rows(Rows<const T> from, int64_t begin, int64_t end, int64_t d, int64_t width, W factor,
                               W* to) {
  for (int64_t row = begin; row < end; ++row, to += width) {
    const T* x = from.data + row * from.stride;
#pragma omp simd
    for (int64_t i = 0; i < d; ++i) to[i] = widen(x[i]) * factor;
    for (int64_t i = d; i < width; ++i) to[i] = 0;
  }
}

// Panels of the rows: panel p holds features [p * kPanel, (p + 1) * kPanel) of rows [begin, end), row after row, so that
// a tile reads adjacent lines. It has room for `room` rows. Features are padded with zeros.
template <typename T, typename W>
TRIMARAN_INLINE void copy_panels(Rows<const T> from, int64_t begin, int64_t end, int64_t room, int64_t d, W factor,
                                 W* to) {
  constexpr int64_t P = kPanel<W>;
  for (int64_t start = 0; start < d; start += P, to += room * P) {
    const int64_t count = std::min(P, d - start);
    for (int64_t row = begin; row < end; ++row) {
      const T* x = from.data + row * from.stride + start;
      W* line = to + (row - begin) * P;
      if (count == P) {
#pragma omp simd
        for (int64_t i = 0; i < P; ++i) line[i] = widen(x[i]) * factor;
      } else {
        for (int64_t i = 0; i < P; ++i) line[i] = i < count ? widen(x[i]) * factor : W(0);
      }
    }
  }
}

// Panels of the transposed rows: panel p holds, for each feature, rows [p * kPanel, (p + 1) * kPanel).
template <typename T, typename W>
TRIMARAN_INLINE void copy_transposed(Rows<const T> from, int64_t rows, int64_t d, W* to) {
  constexpr int64_t P = kPanel<W>;
  for (int64_t start = 0; start < rows; start += P, to += P * d) {
    const int64_t count = std::min(P, rows - start);
    for (int64_t j = 0; j < P; ++j) {
      const T* x = from.data + (start + std::min(j, count - 1)) * from.stride;
      for (int64_t i = 0; i < d; ++i) to[i * P + j] = j < count ? widen(x[i]) : W(0);
    }
  }
}

// A range of keys; empty when low >= high.
struct Span {
  int64_t low, high;
};
TRIMARAN_INLINE Span within(Span span, int64_t low, int64_t high) {
  return {std::max(span.low, low), std::min(span.high, high)};
}

// Up to kQueries queries, and which keys they see: all of them together, and each stripe of rows of a tile.
struct Block {
  int64_t begin, rows;
  Span all, stripes[kQueries / kTileRows];

  Block(const HeadShape& shape, int64_t first) : begin(first), rows(std::min(kQueries, shape.queries - first)) {
    all = {shape.keys, 0};
    for (int64_t row = 0; row < rows; row += kTileRows) {
      Span span{shape.keys, 0};
      for (int64_t i = begin + row; i < begin + std::min(rows, row + kTileRows); ++i) {
        if (shape.first[i] > shape.last[i]) continue;
        span.low = std::min<int64_t>(span.low, shape.first[i]);
        span.high = std::max<int64_t>(span.high, shape.last[i] + 1);
      }
      stripes[row / kTileRows] = span;
      all = {std::min(all.low, span.low), std::max(all.high, span.high)};
    }
  }
  int64_t count(int64_t row) const { return std::min(kTileRows, rows - row); }
};

// C [rows, kKeys] = A [rows, d] B for a window of keys in transposed panels, where a stripe of rows sees them.
template <typename W>
TRIMARAN_INLINE void score(const Block& block, int64_t d, const W* a, int64_t width, const W* panels, Span window,
                           W* c) {
  constexpr int64_t P = kPanel<W>;
  const int64_t low = window.low;
  const Span keys = within(block.all, low, window.high);
  for (int64_t panel = keys.low / P * P; panel < keys.high; panel += P) {
    for (int64_t row = 0; row < block.rows; row += kTileRows) {
      const Span span = within(block.stripes[row / kTileRows], panel, panel + P);
      if (span.low >= span.high) continue;
      stripe(block.count(row), d, Left<W>{a + row * width, width, 1}, panels + panel * d, P,
             c + row * kKeys + panel - low, kKeys, false);
    }
  }
}

// C [rows, width] += P [rows, kKeys] B, for the keys of the window that each stripe of rows sees; B [keys, width] in
// panels of `keys` rows.
template <typename W>
TRIMARAN_INLINE void weigh(const Block& block, const W* probs, const W* panels, int64_t keys, int64_t width,
                           Span window, W* c) {
  constexpr int64_t P = kPanel<W>;
  const int64_t low = window.low;
  for (int64_t panel = 0; panel < width; panel += P) {
    for (int64_t row = 0; row < block.rows; row += kTileRows) {
      const Span span = within(block.stripes[row / kTileRows], low, window.high);
      if (span.low >= span.high) continue;
      stripe(block.count(row), span.high - span.low, Left<W>{probs + row * kKeys + span.low - low, kKeys, 1},
             panels + panel * keys + span.low * P, P, c + row * width + panel, width, true);
    }
  }
}

// C [keys, width] += P^T B, for the keys of the window and the rows that see each stripe of keys; B [rows, width] in
// panels of kQueries rows.
template <typename W>
TRIMARAN_INLINE void collect(const Block& block, const W* probs, const W* panels, int64_t width, Span window, W* c) {
  constexpr int64_t P = kPanel<W>;
  const int64_t low = window.low;
  const Span keys = within(block.all, low, window.high);
  for (int64_t key = keys.low; key < keys.high; key += kTileRows) {
    const int64_t count = std::min(kTileRows, keys.high - key);
    int64_t top = block.rows, bottom = 0;
    for (int64_t row = 0; row < block.rows; row += kTileRows) {
      const Span span = within(block.stripes[row / kTileRows], key, key + count);
      if (span.low >= span.high) continue;
      top = std::min(top, row);
      bottom = row + block.count(row);
    }
    if (top >= bottom) continue;
    const Left<W> left{probs + top * kKeys + key - low, 1, kKeys};
    for (int64_t panel = 0; panel < width; panel += P)
      stripe(count, bottom - top, left, panels + panel * kQueries + top * P, P, c + key * width + panel, width, true);
  }
}

// Add the distance bias to a row's visible scores.
template <typename W>
TRIMARAN_INLINE void add_slope(const HeadShape& shape, int64_t query, Span span, int64_t low, W* row) {
  if (shape.slope == 0) return;
  const W slope = static_cast<W>(shape.slope), origin = static_cast<W>(span.low - query - shape.shift);
  W* seen = row + span.low - low;
#pragma omp simd
  for (int64_t j = 0; j < span.high - span.low; ++j) seen[j] += slope * (origin + static_cast<W>(j));
}

// Turn a row's visible scores into exp(score - top), and the rest of the block's keys into 0; return the sum.
template <typename W>
TRIMARAN_INLINE W exponentials(Span span, Span keys, int64_t low, W top, W* row) {
  for (int64_t j = keys.low; j < std::min(span.low, keys.high); ++j) row[j - low] = 0;
  for (int64_t j = std::max(span.high, keys.low); j < keys.high; ++j) row[j - low] = 0;
  W* seen = row + span.low - low;
  W sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < span.high - span.low; ++j) {
    seen[j] = exp_below(seen[j] - top);
    sum += seen[j];
  }
  return sum;
}

template <typename W>
TRIMARAN_INLINE W largest(const W* row, int64_t count, W top) {
#pragma omp simd reduction(max : top)
  for (int64_t j = 0; j < count; ++j) top = row[j] > top ? row[j] : top;
  return top;
}

template <typename W>
constexpr W kNothing = -std::numeric_limits<W>::infinity();  // largest of no scores, or of scores that overflowed to it

// Scratch that a thread keeps from call to call.
enum Slot { kQ, kQP, kK, kV, kKT, kVT, kDout, kDoutP, kScores, kGrads, kOut, kDk, kDv, kSlots };
template <typename W>
W* scratch(Slot slot, int64_t count) {
  thread_local std::vector<W> kept[kSlots];
  if (static_cast<int64_t>(kept[slot].size()) < count) kept[slot].resize(count);
  return kept[slot].data();
}

// The softmax of a block of scores, joined with what earlier blocks of keys gave (`top`, `sum`, `out`).
template <typename W>
TRIMARAN_INLINE void join(const HeadShape& shape, const Block& block, Span window, int64_t width, W* scores, W* top,
                          W* sum, W* out) {
  const int64_t low = window.low;
  const Span keys = within(block.all, low, window.high);
  for (int64_t row = 0; row < block.rows; ++row) {
    const int64_t query = block.begin + row;
    const Span span = within({shape.first[query], shape.last[query] + 1}, keys.low, keys.high);
    W* s = scores + row * kKeys;
    if (span.low >= span.high) {
      std::fill(s + keys.low - low, s + keys.high - low, W(0));
      continue;
    }
    add_slope(shape, query, span, low, s);
    const W old = top[row], now = largest(s + span.low - low, span.high - span.low, old);
    const W keep = old == now ? W(1) : fast_exp(old - now);
    top[row] = now;
    sum[row] = sum[row] * keep + exponentials(span, keys, low, now == kNothing<W> ? W(0) : now, s);
    if (keep != W(1)) {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) out[row * width + i] *= keep;
    }
  }
}

template <typename T, typename W>
TRIMARAN_INLINE void forward(HeadShape shape, Rows<const T> q, Rows<const T> k, Rows<const T> v, Rows<T> out, W* lse,
                             Share share) {
  const int64_t d = shape.d, width = round_up(d, kPanel<W>), keys = round_up(shape.keys, kPanel<W>);
  W *qs = scratch<W>(kQ, kQueries * width), *kt = scratch<W>(kKT, keys * d), *vs = scratch<W>(kV, keys * width);
  W *scores = scratch<W>(kScores, kQueries * kKeys), *sums = scratch<W>(kOut, kQueries * width);
  copy_transposed<T, W>(k, shape.keys, d, kt);
  copy_panels<T, W>(v, 0, shape.keys, keys, d, W(1), vs);
  const int64_t step = keys_of_block(d);
  W top[kQueries], sum[kQueries];
  for (int64_t start = share.first * kQueries; start < shape.queries; start += share.of * kQueries) {
    const Block block(shape, start);
    copy_rows<T, W>(q, start, start + block.rows, d, width, static_cast<W>(shape.scale), qs);
    std::fill(top, top + kQueries, kNothing<W>);
    std::fill(sum, sum + kQueries, W(0));
    std::fill(sums, sums + block.rows * width, W(0));
    for (int64_t low = block.all.low / step * step; low < block.all.high; low += step) {
      const Span window{low, low + step};
      score(block, d, qs, width, kt, window, scores);
      join(shape, block, window, width, scores, top, sum, sums);
      weigh(block, scores, vs, keys, width, window, sums);
    }
    for (int64_t row = 0; row < block.rows; ++row) {
      const bool sees = top[row] != kNothing<W> || sum[row] != sum[row];  // NaN is no largest score, but is passed on
      const W factor = sees ? W(1) / sum[row] : W(0);
      T* to = out.data + (start + row) * out.stride;
      for (int64_t i = 0; i < d; ++i) narrow(sums[row * width + i] * factor, to[i]);
      lse[start + row] = sees ? top[row] + std::log(sum[row]) : kNothing<W>;
    }
  }
}

// Scores -> probabilities, and gradients of probabilities -> gradients of scores.
template <typename W>
TRIMARAN_INLINE void differentiate(const HeadShape& shape, const Block& block, Span window, const W* lse,
                                   const W* dots, W* probs, W* grads) {
  const int64_t low = window.low;
  const Span keys = within(block.all, low, window.high);
  for (int64_t row = 0; row < block.rows; ++row) {
    const int64_t query = block.begin + row;
    const Span span = within({shape.first[query], shape.last[query] + 1}, keys.low, keys.high);
    W *p = probs + row * kKeys, *g = grads + row * kKeys;
    if (span.low >= span.high || lse[query] == kNothing<W>) {
      std::fill(p + keys.low - low, p + keys.high - low, W(0));
      std::fill(g + keys.low - low, g + keys.high - low, W(0));
      continue;
    }
    add_slope(shape, query, span, low, p);
    exponentials(span, keys, low, lse[query], p);
    std::fill(g + keys.low - low, g + span.low - low, W(0));
    std::fill(g + span.high - low, g + keys.high - low, W(0));
    const W dot = dots[row];
#pragma omp simd
    for (int64_t j = span.low - low; j < span.high - low; ++j) g[j] = p[j] * (g[j] - dot);
  }
}

template <typename T, typename W>
TRIMARAN_INLINE void backward(HeadShape shape, Rows<const T> q, Rows<const T> k, Rows<const T> v, Rows<const T> out,
                              Rows<const T> dout, const W* lse, Rows<T> dq, Rows<W> dk, Rows<W> dv,
                              Share share) {
  const int64_t d = shape.d, width = round_up(d, kPanel<W>), keys = round_up(shape.keys, kPanel<W>);
  const W scale = static_cast<W>(shape.scale);
  W *qs = scratch<W>(kQ, kQueries * width), *ks = scratch<W>(kK, keys * width), *kt = scratch<W>(kKT, keys * d);
  W *vt = scratch<W>(kVT, keys * d), *douts = scratch<W>(kDout, kQueries * width);
  W *q_panels = scratch<W>(kQP, kQueries * width), *dout_panels = scratch<W>(kDoutP, kQueries * width);
  W *probs = scratch<W>(kScores, kQueries * kKeys), *grads = scratch<W>(kGrads, kQueries * kKeys);
  W *dqs = scratch<W>(kOut, kQueries * width), *dks = scratch<W>(kDk, keys * width);
  W* dvs = scratch<W>(kDv, keys * width);
  copy_transposed<T, W>(k, shape.keys, d, kt);
  copy_transposed<T, W>(v, shape.keys, d, vt);
  copy_panels<T, W>(k, 0, shape.keys, keys, d, W(1), ks);
  std::fill(dks, dks + keys * width, W(0));
  std::fill(dvs, dvs + keys * width, W(0));
  W dots[kQueries];
  const int64_t step = keys_of_block(d);
  for (int64_t start = share.first * kQueries; start < shape.queries; start += share.of * kQueries) {
    const Block block(shape, start);
    copy_rows<T, W>(q, start, start + block.rows, d, width, scale, qs);
    copy_rows<T, W>(dout, start, start + block.rows, d, width, W(1), douts);
    copy_panels<T, W>(q, start, start + block.rows, kQueries, d, scale, q_panels);
    copy_panels<T, W>(dout, start, start + block.rows, kQueries, d, W(1), dout_panels);
    std::fill(dqs, dqs + block.rows * width, W(0));
    for (int64_t row = 0; row < block.rows; ++row) {
      const T* o = out.data + (start + row) * out.stride;
      W dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t i = 0; i < d; ++i) dot += widen(o[i]) * douts[row * width + i];
      dots[row] = dot;
    }
    for (int64_t low = block.all.low / step * step; low < block.all.high; low += step) {
      const Span window{low, low + step};
      score(block, d, qs, width, kt, window, probs);
      score(block, d, douts, width, vt, window, grads);
      differentiate(shape, block, window, lse, dots, probs, grads);
      collect(block, probs, dout_panels, width, window, dvs);
      collect(block, grads, q_panels, width, window, dks);
      weigh(block, grads, ks, keys, width, window, dqs);
    }
    for (int64_t row = 0; row < block.rows; ++row)
      for (int64_t i = 0; i < d; ++i) narrow(dqs[row * width + i] * scale, dq.data[(start + row) * dq.stride + i]);
  }
  for (int64_t key = 0; key < shape.keys; ++key) {
    memcpy(dk.data + key * dk.stride, dks + key * width, d * sizeof(W));
    memcpy(dv.data + key * dv.stride, dvs + key * width, d * sizeof(W));
  }
}

template <typename T, typename W>
TRIMARAN_INLINE void sum(const W* parts, int64_t count, int64_t keys, int64_t d, Rows<T> to) {
  for (int64_t key = 0; key < keys; ++key) {
    const W* part = parts + key * d;
    T* row = to.data + key * to.stride;
    for (int64_t i = 0; i < d; ++i) {
      W total = part[i];
      for (int64_t other = 1; other < count; ++other) total += part[other * keys * d + i];
      narrow(total, row[i]);
    }
  }
}

}  // namespace

#define TRIMARAN_ATTENTION(T, W)                                                                                       \
  template <>                                                                                                          \
  TRIMARAN_CLONES void attention_forward(HeadShape shape, Rows<const T> q, Rows<const T> k, Rows<const T> v,           \
                                         Rows<T> out, W* lse, Share share) {                                           \
    forward<T, W>(shape, q, k, v, out, lse, share);                                                                    \
  }                                                                                                                    \
  template <>                                                                                                          \
  TRIMARAN_CLONES void attention_backward(HeadShape shape, Rows<const T> q, Rows<const T> k, Rows<const T> v,          \
                                          Rows<const T> out, Rows<const T> dout, const W* lse, Rows<T> dq, Rows<W> dk, \
                                          Rows<W> dv, Share share) {                                                   \
    backward<T, W>(shape, q, k, v, out, dout, lse, dq, dk, dv, share);                                                 \
  }                                                                                                                    \
  template <>                                                                                                          \
  TRIMARAN_CLONES void sum_parts(const W* parts, int64_t count, int64_t keys, int64_t d, Rows<T> to) {                 \
    sum<T, W>(parts, count, keys, d, to);                                                                              \
  }
TRIMARAN_ATTENTION(float, float)
TRIMARAN_ATTENTION(double, double)
TRIMARAN_ATTENTION(BFloat16, float)
TRIMARAN_ATTENTION(Half, float)

}  // namespace trimaran
