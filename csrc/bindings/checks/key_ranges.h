#pragma once

#include "checks/tensors.h"

// Query i of sequence n of x, which has b of them, sees the keys first[n, i] to last[n, i].
inline void check_key_ranges(const char* op, const Tensor& x, const Tensor& first, const Tensor& last, int64_t b,
                             int64_t queries) {
  for (const Tensor& range : {first, last}) {
    TORCH_CHECK(range.scalar_type() == at::kInt && range.is_contiguous() && range.dim() == 2 &&
                    (range.size(0) == 1 || range.size(0) == b) && range.size(1) == queries,
                op, ": ranges of keys must be int32 [1 or b, queries]");
    on_one_device(x, range, op);
  }
  TORCH_CHECK(first.sizes() == last.sizes(), op, ": first and last keys of different shapes");
}

// ALiBi's.
inline void check_slopes(const char* op, const Tensor& x, const OptionalTensor& slopes, int64_t heads) {
  if (!slopes) return;
  TORCH_CHECK(slopes->scalar_type() == at::kFloat && slopes->is_contiguous() && slopes->numel() == heads, op,
              ": one float32 slope a head");
  on_one_device(x, *slopes, op);
}
