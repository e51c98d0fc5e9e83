"""The local halves of cross-entropy over a part of the vocabulary; `engine.parallel.cross_entropy` joins them.

Statistics are float32 (float64 for float64 logits) whatever the dtype of the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.ops import backend


def ce_stats(logits_nv: Tensor, targets_n: Tensor, vocab_start: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return per row the largest logit, sum(exp(logit - largest)), the target's logit (0 where not held here), and
    the sum of all logits.

    `logits_nv` are the columns of the vocabulary from `vocab_start` on, `targets_n` int64 global ids.
    """
    if backend.native("cross_entropy", logits_nv):
        return torch.ops.trimaran.ce_stats(logits_nv.contiguous(), targets_n, vocab_start)
    wide = logits_nv if logits_nv.dtype == torch.float64 else logits_nv.float()
    max_n = wide.amax(dim=-1)
    base_n = max_n.clamp(min=torch.finfo(max_n.dtype).min)  # a part of nothing but -inf sums to 0, not to NaN
    sum_n = (wide - base_n[:, None]).exp().sum(dim=-1)
    local_n, held_n = _local(targets_n, vocab_start, logits_nv.shape[1])
    target_n = wide.gather(1, local_n[:, None])[:, 0].masked_fill(~held_n, 0.0)
    return max_n, sum_n, target_n, wide.sum(dim=-1)


def ce_grad_(
    logits_nv: Tensor,
    targets_n: Tensor,
    vocab_start: int,
    max_n: Tensor,
    log_sum_n: Tensor,
    scale_n: Tensor,
    *,
    vocab: int = 0,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Overwrite the logits with their gradient and return them.

    That is scale * (p * (1 + 2 z_loss log Z) - (1 - smoothing) [is target] - smoothing / vocab), where log Z =
    max + log_sum over the whole vocabulary of `vocab` tokens and p = exp(logit - max - log_sum). The sum of the two
    is not formed for p, because it would round away the digits that the softmax needs. Rows of scale 0 become zeros,
    whatever their logits.
    """
    if backend.native("cross_entropy", logits_nv) and logits_nv.is_contiguous():
        torch.ops.trimaran.ce_grad_(
            logits_nv, targets_n, vocab_start, max_n, log_sum_n, scale_n.contiguous(), vocab, smoothing, z_loss
        )
        return logits_nv
    grad_nv = ((logits_nv.to(max_n.dtype) - max_n[:, None]) - log_sum_n[:, None]).exp()
    if z_loss:
        grad_nv *= 1.0 + 2.0 * z_loss * (max_n + log_sum_n)[:, None]
    if smoothing:
        grad_nv -= smoothing / vocab
    local_n, held_n = _local(targets_n, vocab_start, logits_nv.shape[1])
    grad_nv.scatter_add_(1, local_n[:, None], -(1.0 - smoothing) * held_n[:, None].to(grad_nv.dtype))
    return logits_nv.copy_((grad_nv * scale_n[:, None]).masked_fill_(scale_n[:, None] == 0, 0.0))


def _local(targets_n: Tensor, vocab_start: int, width: int) -> tuple[Tensor, Tensor]:
    held_n = (targets_n >= vocab_start) & (targets_n < vocab_start + width)
    return (targets_n - vocab_start).clamp(0, width - 1), held_n
