#include "checks/cross_entropy.h"

#include "cuda_binding.h"

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> ce_stats(const Tensor& logits, const Tensor& targets, int64_t start) {
  check_targets(logits, targets);
  Tensor max = at::empty({logits.size(0)}, logits.options().dtype(wide(logits)));
  Tensor sum = at::empty_like(max), target = at::empty_like(max), total = at::empty_like(max);
  DISPATCH_ALL(logits, "ce_stats", [&] {
    using T = typename Stored<scalar_t>::type;
    using W = trimaran::Wide<T>;
    const trimaran::CudaCrossEntropy<T> call{.logits = input<scalar_t>(logits),
                                             .targets = targets.const_data_ptr<int64_t>(),
                                             .max = max.data_ptr<W>(),
                                             .sum = sum.data_ptr<W>(),
                                             .target = target.data_ptr<W>(),
                                             .total = total.data_ptr<W>(),
                                             .rows = logits.size(0),
                                             .v = logits.size(1),
                                             .start = start};
    on_device_of(logits, [&](cudaStream_t stream) { return trimaran::cuda_cross_entropy(call, stream); });
  });
  return {max, sum, target, total};
}

void ce_grad_(Tensor& logits, const Tensor& targets, int64_t start, const Tensor& max, const Tensor& log_sum,
              const Tensor& scale, int64_t vocab, double smoothing, double z_loss) {
  check_ce_grad(logits, targets, max, log_sum, scale, vocab, smoothing);
  DISPATCH_ALL(logits, "ce_grad_", [&] {
    using T = typename Stored<scalar_t>::type;
    using W = trimaran::Wide<T>;
    const trimaran::CudaCrossEntropyGrad<T> call{.logits = output<scalar_t>(logits),
                                                 .targets = targets.const_data_ptr<int64_t>(),
                                                 .max = max.const_data_ptr<W>(),
                                                 .log_sum = log_sum.const_data_ptr<W>(),
                                                 .scale = scale.const_data_ptr<W>(),
                                                 .rows = logits.size(0),
                                                 .v = logits.size(1),
                                                 .start = start,
                                                 .vocab = vocab,
                                                 .smoothing = smoothing,
                                                 .z_loss = z_loss};
    on_device_of(logits, [&](cudaStream_t stream) { return trimaran::cuda_cross_entropy_grad(call, stream); });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(trimaran, TRIMARAN_CUDA_KEY, m) {
  m.impl("ce_stats", &ce_stats);
  m.impl("ce_grad_", &ce_grad_);
}
