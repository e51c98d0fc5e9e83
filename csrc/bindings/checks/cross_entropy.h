#pragma once

#include "checks/tensors.h"

inline void check_targets(const Tensor& logits, const Tensor& targets) {
  TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous(), "cross_entropy takes contiguous logits [n, v]");
  TORCH_CHECK(targets.scalar_type() == at::kLong && targets.numel() == logits.size(0) && targets.is_contiguous(),
              "cross_entropy takes one int64 target a row");
  on_one_device(logits, targets, "cross_entropy: logits and targets");
}

inline void check_ce_grad(const Tensor& logits, const Tensor& targets, const Tensor& max, const Tensor& log_sum,
                          const Tensor& scale, int64_t vocab, double smoothing) {
  check_targets(logits, targets);
  for (const Tensor& row : {max, log_sum, scale}) {
    TORCH_CHECK(row.scalar_type() == wide(logits), "ce_grad_: row statistics are ", row.scalar_type(), ", not ",
                wide(logits));
    TORCH_CHECK(row.is_contiguous() && row.numel() == logits.size(0), "ce_grad_ takes one number a row");
    on_one_device(logits, row, "ce_grad_: logits and row statistics");
  }
  TORCH_CHECK(smoothing == 0 || vocab > 0, "ce_grad_: label smoothing needs the size of the vocabulary");
}
