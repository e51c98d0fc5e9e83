#include "binding.h"

namespace {

void check_targets(const Tensor& logits, const Tensor& targets) {
  TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous(), "cross_entropy takes contiguous logits [n, v]");
  TORCH_CHECK(targets.scalar_type() == at::kLong && targets.numel() == logits.size(0) && targets.is_contiguous(),
              "cross_entropy takes one int64 target a row");
}

std::tuple<Tensor, Tensor, Tensor> ce_stats(const Tensor& logits, const Tensor& targets, int64_t start) {
  check_targets(logits, targets);
  const int64_t n = logits.size(0), v = logits.size(1);
  Tensor max = at::empty({n}, logits.options()), sum = at::empty_like(max), target = at::empty_like(max);
  DISPATCH(logits, "ce_stats", [&] {
    at::parallel_for(0, n, rows_grain(v), [&](int64_t begin, int64_t end) {
      trimaran::ce_stats(logits.const_data_ptr<scalar_t>(), targets.const_data_ptr<int64_t>(),
                         max.data_ptr<scalar_t>(), sum.data_ptr<scalar_t>(), target.data_ptr<scalar_t>(), begin, end,
                         v, start);
    });
  });
  return {max, sum, target};
}

Tensor& ce_grad_(Tensor& logits, const Tensor& targets, int64_t start, const Tensor& max, const Tensor& log_sum,
                 const Tensor& scale) {
  check_targets(logits, targets);
  for (const Tensor& row : {max, log_sum, scale}) {
    same(logits, row, "ce_grad_: logits and row statistics");
    TORCH_CHECK(row.is_contiguous() && row.numel() == logits.size(0), "ce_grad_ takes one number a row");
  }
  DISPATCH(logits, "ce_grad_", [&] {
    at::parallel_for(0, logits.size(0), rows_grain(logits.size(1)), [&](int64_t begin, int64_t end) {
      trimaran::ce_grad(logits.data_ptr<scalar_t>(), targets.const_data_ptr<int64_t>(), max.const_data_ptr<scalar_t>(),
                        log_sum.const_data_ptr<scalar_t>(), scale.const_data_ptr<scalar_t>(), begin, end,
                        logits.size(1), start);
    });
  });
  return logits;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trimaran, m) {
  m.def("ce_stats(Tensor logits, Tensor targets, int start) -> (Tensor, Tensor, Tensor)");
  m.def(
      "ce_grad_(Tensor(a!) logits, Tensor targets, int start, Tensor max, Tensor log_sum, Tensor scale) "
      "-> Tensor(a!)");
}

TORCH_LIBRARY_IMPL(trimaran, CPU, m) {
  m.impl("ce_stats", &ce_stats);
  m.impl("ce_grad_", &ce_grad_);
}
