// Gradients of weights are sums over rows. Rows are summed in blocks of a fixed number, each into numbers of its own,
// and the blocks are added up in order: the result does not depend on how many threads share the work.
#pragma once

#include "binding.h"
#include "column_sum.h"

constexpr int64_t kBlockRows = 64;

inline int64_t row_blocks(int64_t rows) { return (rows + kBlockRows - 1) / kBlockRows; }

// use(block, begin, end) for every block of rows [begin, end), in parallel.
template <typename Use>
void for_each_row_block(int64_t rows, int64_t width, Use use) {
  at::parallel_for(0, row_blocks(rows), rows_grain(kBlockRows * width), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block)
      use(block, block * kBlockRows, std::min(rows, (block + 1) * kBlockRows));
  });
}

inline Tensor sum_blocks(const Tensor& partial) {
  const int64_t rows = partial.size(0), width = partial.size(1);
  Tensor out = at::empty({width}, partial.options());
  DISPATCH(partial, "sum_blocks", [&] {
    at::parallel_for(0, width, rows_grain(rows), [&](int64_t begin, int64_t end) {
      trimaran::column_sum(partial.const_data_ptr<scalar_t>(), out.data_ptr<scalar_t>(), rows, width, begin, end);
    });
  });
  return out;
}
