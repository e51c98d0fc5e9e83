// Attention of one head on the CPU, in blocks (FlashAttention-2, arXiv 2307.08691): probabilities live in the cache
// only, and keys that no query of a block may see are skipped.
#pragma once

#include <cstdint>

namespace trimaran {

// Rows of one head: row i at data + i * stride, its d features adjacent.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
};

// Query i sees keys [first[i], last[i]] (none when first > last); scores are q.k * scale + slope * (key - query - shift).
struct HeadShape {
  int64_t queries, keys, d;
  const int32_t *first, *last;
  double scale, slope;
  int64_t shift;
};

// Queries are worked on in blocks of kQueryBlock. A share of them is every `of`-th block from block `first` on: causal
// heads cut into shares give each nearly the same work.
constexpr int64_t kQueryBlock = 96;
struct Share {
  int64_t first, of;
};

// out and lse (log of the sum of exponentials; -inf for a query that sees nothing but scores of -inf, whose output is 0)
// of a share of the queries. T: float, double, BFloat16, Half; lse is float, or double for double.
template <typename T, typename W>
void attention_forward(HeadShape shape, Rows<const T> q, Rows<const T> k, Rows<const T> v, Rows<T> out, W* lse,
                       Share share);

// dq of a share of one head's queries, and what these add to dk and dv (in W: the caller adds up shares, and heads that
// have one kv head).
template <typename T, typename W>
void attention_backward(HeadShape shape, Rows<const T> q, Rows<const T> k, Rows<const T> v, Rows<const T> out,
                        Rows<const T> dout, const W* lse, Rows<T> dq, Rows<W> dk, Rows<W> dv, Share share);

// to [keys, d] = the sum of `count` parts, adjacent [keys, d] each.
template <typename T, typename W>
void sum_parts(const W* parts, int64_t count, int64_t keys, int64_t d, Rows<T> to);

}  // namespace trimaran
