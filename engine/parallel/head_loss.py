"""The output projection and its cross-entropy, a block of tokens at a time, so that not all logits are ever held.

The logits of a micro-batch are often the largest tensor of a step. Here those of a block live until their gradient has
been multiplied into the gradients of the hidden states and of the head. That happens in the forward pass, which must
therefore know what the backward pass is going to start from. Saved for backward: the gradient of the hidden states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.ops.cross_entropy import ce_grad_
from engine.ops.linear import add_weight_grad_, grad_input, matmul, widen
from engine.parallel.collectives import DONE, all_reduce, gather_sequence, start_scatter_sequence
from engine.parallel.cross_entropy import (
    NO_TERMS,
    LossTerms,
    joined_logits,
    joined_stats,
    runs_on_flash,
    vocab_parallel_cross_entropy,
)
from engine.parallel.linear import TensorParallel, column_linear
from engine.parallel.sharding import pieces_of

_CPU_BLOCK_MB = 16.0  # stays in a large cache


@dataclass(frozen=True)
class Share:
    """How token losses add up: sum(loss * mask) * factor.

    `mask_bs` [b, s] or None (neither labels nor logits matter where it is 0), `factor` 0-dim (one over the tokens of
    the global batch, say), and `gradient` 0-dim, from which the backward pass will start (fp16's loss scale; None: 1).
    """

    mask_bs: Tensor | None
    factor: Tensor
    gradient: Tensor | None = None


def head_loss(
    x_bsh: Tensor,
    head_vh: Tensor,
    labels_bs: Tensor,
    share: Share,
    tp: TensorParallel,
    *,
    bias_v: Tensor | None = None,
    terms: LossTerms = NO_TERMS,
    block_mb: float | None = None,
) -> Tensor:
    """Return the micro-batch's share of the loss, 0-dim float32 (float64 for float64), for x [b, s, h] and my rows of
    the head and of its bias; under sequence parallelism x is my shard.

    At most `block_mb` MiB of logits are held at a time (0: all; None: 16 on CPUs, all on GPUs). The backward pass
    must start from `share.gradient`, whatever it is handed. Labels outside the vocabulary must be masked
    (RuntimeError; on GPUs when the device comes to it).
    """
    (piece,) = pieces_of(head_vh)
    _check_labels(labels_bs, share, piece.global_shape[0])
    if runs_on_flash(x_bsh, tp.axis, terms):
        logits_bsv = column_linear(x_bsh, head_vh, bias_v, tp)
        logits_nv, targets_n = logits_bsv.view(-1, logits_bsv.shape[-1]), labels_bs.reshape(-1)
        losses_n = vocab_parallel_cross_entropy(logits_nv, targets_n, piece.offsets[0], tp.axis, terms)
        return _sum(losses_n, share)
    return _HeadLoss.apply(
        x_bsh, head_vh, bias_v, labels_bs.reshape(-1), share, tp, terms, block_mb, torch.is_grad_enabled()
    )


def token_losses(
    x_bsh: Tensor,
    head_vh: Tensor,
    labels_bs: Tensor,
    tp: TensorParallel,
    *,
    bias_v: Tensor | None = None,
    block_mb: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss of each token and whether no logit is above its label's, both [b, s], without a graph.

    x, the bias and `block_mb` are as for `head_loss`; labels must be inside the vocabulary.
    """
    (piece,) = pieces_of(head_vh)
    x_nh, targets_n = _whole_rows(x_bsh, tp), labels_bs.reshape(-1)
    losses, tops = list[Tensor](), list[Tensor]()
    for n in _spans(x_nh, piece.global_shape[0], tp, block_mb):
        logits_nv = matmul(widen(x_nh[n]), head_vh, bias_v)
        max_n, log_sum_n, target_n = joined_logits(logits_nv, targets_n[n], piece.offsets[0], tp.axis)
        losses.append(log_sum_n + (max_n - target_n))
        tops.append(target_n == max_n)
    return torch.cat(losses).view_as(labels_bs), torch.cat(tops).view_as(labels_bs)


def token_logits(
    x_bsh: Tensor, head_vh: Tensor, places_b: Tensor, tp: TensorParallel, *, bias_v: Tensor | None = None
) -> Tensor:
    """Return my columns of the logits [b, v] at one place of each sample; x and the bias are as for `head_loss`."""
    b, s = places_b.shape[0], x_bsh.shape[1] * (tp.axis.size if tp.shards_sequence else 1)
    rows_b = torch.arange(b, device=places_b.device) * s + places_b
    return matmul(widen(_whole_rows(x_bsh, tp)[rows_b]), head_vh, bias_v)


def _whole_rows(x_bsh: Tensor, tp: TensorParallel) -> Tensor:
    """Return the hidden states of all tokens, [b * s, h]."""
    whole_bsh = gather_sequence(x_bsh, tp.axis) if tp.shards_sequence else x_bsh
    return whole_bsh.reshape(-1, whole_bsh.shape[-1])


def _spans(x_nh: Tensor, vocab: int, tp: TensorParallel, block_mb: float | None) -> list[slice]:
    """Return the blocks of tokens whose logits are held at a time: the same on all ranks, one, empty, of no tokens."""
    if block_mb is None:
        block_mb = _CPU_BLOCK_MB if x_nh.is_cpu else 0.0
    widest = -(-vocab // tp.axis.size)  # of all ranks, which must cut alike
    rows = _rows(len(x_nh), widest * widen(x_nh[:0]).element_size(), block_mb)
    return [slice(start, start + rows) for start in range(0, max(1, len(x_nh)), rows)]


def _check_labels(labels_bs: Tensor, share: Share, vocab: int) -> None:
    is_fine_bs = (labels_bs >= 0) & (labels_bs < vocab)
    if share.mask_bs is not None:
        is_fine_bs |= (share.mask_bs == 0).view_as(is_fine_bs)
    said = f"head_loss: a label is outside the vocabulary of {vocab} tokens, and not masked; give it a loss mask of 0."
    torch._assert_async(is_fine_bs.all(), said)  # no GPU is waited for


def _rows(tokens: int, row_bytes: int, block_mb: float) -> int:
    """Return the number of tokens of a block: blocks of nearly one size, none larger than allowed."""
    most = max(1, int(block_mb * 2**20) // row_bytes) if block_mb > 0 else max(1, tokens)
    blocks = max(1, -(-tokens // most))
    return max(1, -(-tokens // blocks))


def _sum(losses_n: Tensor, share: Share) -> Tensor:
    if share.mask_bs is not None:
        mask_n = share.mask_bs.reshape(-1).to(losses_n.dtype)
        losses_n = torch.where(mask_n == 0, 0.0, losses_n * mask_n)  # a masked loss need not be finite
    return losses_n.sum() * share.factor.to(losses_n.dtype)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_bsh: Tensor,
        head_vh: Tensor,
        bias_v: Tensor | None,
        targets_n: Tensor,
        share: Share,
        tp: TensorParallel,
        terms: LossTerms,
        block_mb: float | None,
        has_grad: bool,
    ) -> Tensor:
        head = _Head(head_vh, bias_v)
        whole_bsh = gather_sequence(x_bsh, tp.axis) if tp.shards_sequence else x_bsh
        x_nh = whole_bsh.reshape(-1, whole_bsh.shape[-1])
        if len(targets_n) != len(x_nh):  # blocks would pair what there is of both
            raise ValueError(f"head_loss has {len(targets_n)} labels for {len(x_nh)} tokens.")
        spans = _spans(x_nh, pieces_of(head_vh)[0].global_shape[0], tp, block_mb)
        if not (has_grad and any(ctx.needs_input_grad)):
            return _sum(torch.cat([_block(x_nh[n], head, targets_n[n], tp, terms) for n in spans]), share)
        dx_nh, scale_n = torch.empty_like(x_nh), _scales(targets_n, share, x_nh)
        dhead = _Head(*(_gradient_of(w) if w is not None and w.requires_grad else None for w in head))
        ctx.handles, losses = [], list[Tensor]()
        for n in spans:
            into = _Into(dx_nh[n], dhead, scale_n[n])
            losses.append(_block(x_nh[n], head, targets_n[n], tp, terms, into))
            if not tp.shards_sequence:
                ctx.handles.append(all_reduce(dx_nh[n], tp.axis, asynchronous=True))
        ctx.dx_bsh, ctx.head, ctx.dhead, ctx.tp = dx_nh.view_as(whole_bsh), head, dhead, tp
        return _sum(torch.cat(losses), share)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        dx_bsh, handle = ctx.dx_bsh, DONE
        if ctx.tp.shards_sequence:
            dx_bsh, handle = start_scatter_sequence(dx_bsh, ctx.tp.axis)
        for pending in (*ctx.handles, handle):
            pending.wait()
        return dx_bsh, *(_hand_over(w, dw) for w, dw in zip(ctx.head, ctx.dhead, strict=True)), *[None] * 6


class _Head(NamedTuple):
    """My rows of the head and of its bias, or their gradients."""

    weight_vh: Tensor | None
    bias_v: Tensor | None


class _Into(NamedTuple):
    """Where a block's gradients go: written over `dx_nh`, added to `dhead` (None: a frozen head); `scale_n` is that
    of the losses."""

    dx_nh: Tensor
    dhead: _Head
    scale_n: Tensor


def _block(
    x_nh: Tensor, head: _Head, targets_n: Tensor, tp: TensorParallel, terms: LossTerms, into: _Into | None = None
) -> Tensor:
    """Return the losses of a block of tokens; its logits are gone at the end."""
    head_vh = head.weight_vh
    assert head_vh is not None
    (piece,) = pieces_of(head_vh)
    wide_nh = widen(x_nh)
    logits_nv = matmul(wide_nh, head_vh, head.bias_v)
    losses_n, max_n, log_sum_n = joined_stats(logits_nv, targets_n, piece.offsets[0], tp.axis, terms)
    if into is not None:
        stats = (max_n, log_sum_n, into.scale_n)
        dlogits_nv = ce_grad_(logits_nv, targets_n, piece.offsets[0], *stats, **terms._asdict())
        into.dx_nh.copy_(grad_input(dlogits_nv, head_vh))
        if into.dhead.weight_vh is not None:
            add_weight_grad_(into.dhead.weight_vh, dlogits_nv, wide_nh)
        if into.dhead.bias_v is not None:
            into.dhead.bias_v.add_(dlogits_nv.sum(0, dtype=into.dhead.bias_v.dtype))
    return losses_n


def _gradient_of(weight: Tensor) -> Tensor:
    """Return what a weight's gradient is added to: its main gradient, or zeros for one without."""
    main_grad = getattr(weight, "main_grad", None)
    if main_grad is not None:
        return main_grad
    return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))


def _hand_over(weight: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """Report a main gradient ready, or return the gradient of a weight without one for autograd."""
    if weight is None or grad is None:
        return None
    if hasattr(weight, "main_grad"):
        weight.grad_ready()  # type: ignore[attr-defined]
        return None
    return grad.to(weight.dtype)


def _scales(targets_n: Tensor, share: Share, x_nh: Tensor) -> Tensor:
    """Return the gradient of each token's loss, in the dtype of the statistics."""
    wide = torch.promote_types(x_nh.dtype, torch.float32)
    scale = (share.factor if share.gradient is None else share.factor * share.gradient).to(wide)
    return scale.expand(len(targets_n)) if share.mask_bs is None else share.mask_bs.reshape(-1).to(wide) * scale
