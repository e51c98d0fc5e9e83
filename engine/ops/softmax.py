"""Softmax of attention scores, with everything that comes between the product and the probabilities in one pass.

Saved for backward: the probabilities, and the scores too where they are capped.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from engine.ops import backend
from engine.ops.key_ranges import KeyRanges


def masked_softmax(
    scores_bhss: Tensor,
    keys: KeyRanges,
    *,
    scale: float = 1.0,
    cap: float = 0.0,
    slopes_h: Tensor | None = None,
    bias_hss: Tensor | None = None,
) -> Tensor:
    """Return the probabilities of each query's visible keys; all 0 for a query that sees none, or only logits of -inf.

    A score x becomes cap * tanh(x * scale / cap) (arXiv 2408.00118; 0: no cap), plus `bias_hss` of shape [heads or 1,
    s, s] (relative positions, arXiv 1910.10683), plus ALiBi's -slope * (query - key) with float32 `slopes_h` (arXiv
    2108.12409). Computed in float32 (float64 for float64) and rounded once.
    """
    return _MaskedSoftmax.apply(scores_bhss, keys, scale, cap, slopes_h, bias_hss)


class _MaskedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, keys: KeyRanges, scale: float, cap: float, slopes: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        scores = scores.contiguous()
        if backend.native("softmax", scores):
            biases = None if bias is None else bias.contiguous()
            probs = torch.ops.trimaran.masked_softmax(scores, keys.first_bs, keys.last_bs, scale, cap, slopes, biases)
        else:
            probs = _plain(scores, keys, scale, cap, slopes, bias)
        ctx.save_for_backward(probs, scores if cap else probs)
        ctx.keys, ctx.scale, ctx.cap = keys, scale, cap
        ctx.heads = None if bias is None else bias.shape[0]
        return probs

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        probs, scores = ctx.saved_tensors
        dscores = _backward(grads[0].contiguous(), probs, scores, ctx.keys, ctx.scale, ctx.cap)
        dbias = None
        if ctx.needs_input_grad[5]:
            dlogits = _backward(grads[0].contiguous(), probs, scores, ctx.keys, 1.0, 0.0)
            dbias = dlogits.sum((0, 1), keepdim=True)[0] if ctx.heads == 1 else dlogits.sum(0)
        return dscores, None, None, None, None, dbias


def _backward(dprobs: Tensor, probs: Tensor, scores: Tensor, keys: KeyRanges, scale: float, cap: float) -> Tensor:
    if backend.native("softmax", probs):
        return torch.ops.trimaran.masked_softmax_backward(
            dprobs, probs, scores, keys.first_bs, keys.last_bs, scale, cap
        )
    wide = _wide(probs)
    dlogits = wide * (_wide(dprobs) - (wide * _wide(dprobs)).sum(-1, keepdim=True))
    if cap:
        dlogits = dlogits * (1.0 - torch.tanh(_wide(scores) * (scale / cap)).square())
    return (dlogits * scale).to(probs.dtype)


def _plain(
    scores: Tensor, keys: KeyRanges, scale: float, cap: float, slopes: Tensor | None, bias: Tensor | None
) -> Tensor:
    logits = _wide(scores) * scale
    if cap:
        logits = cap * torch.tanh(logits / cap)
    if bias is not None:
        logits = logits + _wide(bias)
    if slopes is not None:
        places = torch.arange(scores.shape[-1], device=scores.device)
        logits = logits + slopes.to(logits.dtype)[:, None, None] * (places[None, :] - places[:, None])
    logits = logits.masked_fill(~keys.mask_b1ss, -math.inf)
    sees_none = (logits == -math.inf).all(-1, keepdim=True)
    return torch.where(sees_none, 0.0, logits.softmax(dim=-1)).to(scores.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
