// The largest of many numbers and the sum of exp(number - largest), in one pass: the sum is kept relative to the
// largest number so far (arXiv 1805.02867).
#pragma once

#include <cmath>

#include "block.cuh"

namespace trimaran {

template <typename W>
constexpr W kInfinity = std::numeric_limits<W>::infinity();

template <typename W>
struct MaxSum {
  W max = -kInfinity<W>, sum = 0;

  // What exp is taken relative to: not -inf, because masked numbers would become exp(-inf - -inf).
  __device__ __forceinline__ static W base(W max) { return max == -kInfinity<W> ? W(0) : max; }

  template <int N>
  __device__ __forceinline__ void include(const W (&x)[N]) {
    W larger = max;
#pragma unroll
    for (int k = 0; k < N; ++k) larger = Larger()(larger, x[k]);
    const W to = base(larger);
    sum *= exp(max - to);
#pragma unroll
    for (int k = 0; k < N; ++k) sum += exp(x[k] - to);
    max = larger;
  }

  // Make it that of the whole block, in every thread.
  template <typename Scratch>
  __device__ __forceinline__ void join_block(Scratch& scratch) {
    const W larger = block_max(max, scratch);
    sum = block_sum(sum * exp(max - base(larger)), scratch);
    max = larger;
  }
};

}  // namespace trimaran
