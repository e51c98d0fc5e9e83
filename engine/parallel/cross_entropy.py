"""Cross-entropy over a vocabulary that is split over tp, without gathering the logits (arXiv 1909.08053, sec. 3).

A few numbers per token cross the ranks: the largest logit, then together the sum of exponentials, the target's logit
and, for label smoothing, the sum of all logits. The backward pass writes the gradient over the logits, so nothing of
the vocabulary's size is held twice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.mesh import Axis
from engine.ops import backend
from engine.ops.cross_entropy import ce_grad_, ce_stats
from engine.ops.libraries import flash
from engine.parallel.collectives import MAX, all_reduce


class LossTerms(NamedTuple):
    """Label smoothing (arXiv 1512.00567) over a vocabulary of `vocab` tokens, and the z-loss (arXiv 2204.02311).

    `vocab` may be 0, not known, where nothing is smoothed; flash-attn's kernel is then not used.

    loss = (1 - smoothing) * nll(target) + smoothing * mean over the vocabulary of nll + z_loss * (log Z)^2
    """

    vocab: int = 0
    smoothing: float = 0.0
    z_loss: float = 0.0


NO_TERMS = LossTerms()


def joined_stats(
    logits_nv: Tensor, targets_n: Tensor, vocab_start: int, axis: Axis, terms: LossTerms
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each row's loss, largest logit and log(sum(exp(logit - largest))) over the whole vocabulary."""
    stats = ce_stats(logits_nv, targets_n, vocab_start)
    max_n, sum_n, target_n, total_n = _joined(*stats, axis, with_total=bool(terms.smoothing))
    log_sum_n = torch.log(sum_n)
    if terms.smoothing:
        target_n = torch.lerp(target_n, total_n / terms.vocab, terms.smoothing)
    loss_n = log_sum_n + (max_n - target_n)
    if terms.z_loss:
        loss_n = loss_n + terms.z_loss * (max_n + log_sum_n).square()
    return loss_n, max_n, log_sum_n


def joined_logits(logits_nv: Tensor, targets_n: Tensor, vocab_start: int, axis: Axis) -> tuple[Tensor, Tensor, Tensor]:
    """Return each row's largest logit, log(sum(exp(logit - largest))) and the target's logit, over the whole
    vocabulary."""
    max_n, sum_n, target_n, _ = _joined(*ce_stats(logits_nv, targets_n, vocab_start), axis, with_total=False)
    return max_n, torch.log(sum_n), target_n


def _joined(
    max_n: Tensor, sum_n: Tensor, target_n: Tensor, total_n: Tensor, axis: Axis, *, with_total: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Join what each rank knows of its part of the rows; the last one only where it is wanted."""
    if axis.size > 1:
        local_max_n = max_n.clone()
        all_reduce(max_n, axis, MAX)
        parts = [sum_n * torch.exp(local_max_n - max_n), target_n, *([total_n] if with_total else [])]
        sums = torch.stack(parts)
        all_reduce(sums, axis)
        sum_n, target_n, total_n = sums[0], sums[1], sums[-1]
    return max_n, sum_n, target_n, total_n


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_nv: Tensor, targets_n: Tensor, vocab_start: int, axis: Axis, terms: LossTerms
    ) -> Tensor:
        loss_n, max_n, log_sum_n = joined_stats(logits_nv, targets_n, vocab_start, axis, terms)
        ctx.save_for_backward(logits_nv, targets_n, max_n, log_sum_n)
        ctx.vocab_start, ctx.terms = vocab_start, terms
        return loss_n

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        logits_nv, targets_n, max_n, log_sum_n = ctx.saved_tensors
        grad_nv = ce_grad_(logits_nv, targets_n, ctx.vocab_start, max_n, log_sum_n, grads[0], **ctx.terms._asdict())
        return grad_nv, None, None, None, None


def runs_on_flash(x: Tensor, axis: Axis, terms: LossTerms) -> bool:
    """Say whether flash-attn's kernel serves logits like x; every rank of `axis` comes to the same choice."""
    is_even = terms.vocab > 0 and terms.vocab % axis.size == 0  # the library knows equal shares only
    return is_even and backend.choose("cross_entropy", x) == "flash"


def vocab_parallel_cross_entropy(
    logits_nv: Tensor, targets_n: Tensor, vocab_start: int, axis: Axis, terms: LossTerms = NO_TERMS
) -> Tensor:
    """Return -log softmax(logits)[target] for each row, in float32 (float64 for float64 logits), with `terms` added.

    `logits_nv` [n, local vocabulary] are the columns from `vocab_start` on; they are overwritten by their
    gradient in the backward pass and must not be used afterwards. `targets_n` int64 are global token ids; the logit
    of one outside the vocabulary counts as 0, which makes sense only where the caller masks the loss.
    """
    if runs_on_flash(logits_nv, axis, terms):
        return flash.cross_entropy(
            logits_nv, targets_n, vocab=terms.vocab, group=axis.group, label_smoothing=terms.smoothing,
            z_loss=terms.z_loss,
        )  # fmt: skip
    return _CrossEntropy.apply(logits_nv, targets_n, vocab_start, axis, terms)
