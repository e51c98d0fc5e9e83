"""Cross-entropy over a vocabulary that is split over tp, without gathering the logits (arXiv 1909.08053, sec. 3).

Three numbers per token cross the ranks: the largest logit, the sum of exponentials and the target's logit. The
backward pass writes the gradient over the logits, so nothing of the vocabulary's size is held twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.mesh import Axis
from engine.ops.cross_entropy import ce_grad_, ce_stats
from engine.parallel.collectives import MAX, all_reduce


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_nv: Tensor, targets_n: Tensor, vocab_start: int, axis: Axis) -> Tensor:
        max_n, sum_n, target_n = ce_stats(logits_nv, targets_n, vocab_start)
        if axis.size > 1:
            local_max_n = max_n.clone()
            all_reduce(max_n, axis, MAX)
            sums_2n = torch.stack([sum_n * torch.exp(local_max_n - max_n), target_n])
            all_reduce(sums_2n, axis)
            sum_n, target_n = sums_2n.unbind()
        log_sum_n = torch.log(sum_n)
        ctx.save_for_backward(logits_nv, targets_n, max_n, log_sum_n)
        ctx.vocab_start = vocab_start
        return log_sum_n + (max_n - target_n)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        logits_nv, targets_n, max_n, log_sum_n = ctx.saved_tensors
        grad_nv = ce_grad_(logits_nv, targets_n, ctx.vocab_start, max_n, log_sum_n, grads[0])
        return grad_nv, None, None, None


def vocab_parallel_cross_entropy(logits_nv: Tensor, targets_n: Tensor, vocab_start: int, axis: Axis) -> Tensor:
    """Return -log softmax(logits)[target] for each row, in float32 (float64 for float64 logits).

    `logits_nv` [n, local vocabulary] are the columns from `vocab_start` on; they are overwritten by their
    gradient in the backward pass and must not be used afterwards. `targets_n` int64 are global token ids.
    """
    return _CrossEntropy.apply(logits_nv, targets_n, vocab_start, axis)
