#include "cross_entropy.h"

#include <cstring>

#include "binding.h"
#include "checks/cross_entropy.h"

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> ce_stats(const Tensor& logits, const Tensor& targets, int64_t start) {
  check_targets(logits, targets);
  const int64_t n = logits.size(0), v = logits.size(1);
  Tensor max = at::empty({n}, logits.options().dtype(wide(logits)));
  Tensor sum = at::empty_like(max), target = at::empty_like(max), total = at::empty_like(max);
  DISPATCH_ALL(logits, "ce_stats", [&] {
    using W = trimaran::Wide<typename Stored<scalar_t>::type>;
    at::parallel_for(0, n, rows_grain(v), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const auto* l = input<scalar_t>(logits) + row * v;
        const auto stats = trimaran::cross_entropy_stats(l, v);
        const int64_t local = targets.const_data_ptr<int64_t>()[row] - start;
        max.data_ptr<W>()[row] = stats.max;
        sum.data_ptr<W>()[row] = stats.sum;
        total.data_ptr<W>()[row] = stats.total;
        target.data_ptr<W>()[row] =
            local >= 0 && local < v ? static_cast<W>(logits.const_data_ptr<scalar_t>()[row * v + local]) : W(0);
      }
    });
  });
  return {max, sum, target, total};
}

void ce_grad_(Tensor& logits, const Tensor& targets, int64_t start, const Tensor& max, const Tensor& log_sum,
              const Tensor& scale, int64_t vocab, double smoothing, double z_loss) {
  check_ce_grad(logits, targets, max, log_sum, scale, vocab, smoothing);
  const double spread = smoothing == 0 ? 0.0 : smoothing / static_cast<double>(vocab);
  const int64_t v = logits.size(1);
  DISPATCH_ALL(logits, "ce_grad_", [&] {
    using W = trimaran::Wide<typename Stored<scalar_t>::type>;
    at::parallel_for(0, logits.size(0), rows_grain(v), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const W top = max.const_data_ptr<W>()[row], shift = log_sum.const_data_ptr<W>()[row];
        const W factor = scale.const_data_ptr<W>()[row];
        auto* to = output<scalar_t>(logits) + row * v;
        if (factor == W(0)) {  // a masked token: nothing comes of it, not even of a NaN
          std::memset(to, 0, v * sizeof *to);
          continue;
        }
        trimaran::cross_entropy_grad(to, v, top, shift,
                                     factor * (W(1) + static_cast<W>(2 * z_loss) * (top + shift)),
                                     factor * static_cast<W>(spread), targets.const_data_ptr<int64_t>()[row] - start,
                                     factor * static_cast<W>(1 - smoothing));
      }
    });
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trimaran, m) {
  m.def("ce_stats(Tensor logits, Tensor targets, int start) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "ce_grad_(Tensor(a!) logits, Tensor targets, int start, Tensor max, Tensor log_sum, Tensor scale, int vocab, "
      "float smoothing, float z_loss) -> ()");
}

TORCH_LIBRARY_IMPL(trimaran, CPU, m) {
  m.impl("ce_stats", &ce_stats);
  m.impl("ce_grad_", &ce_grad_);
}
