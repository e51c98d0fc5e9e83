"""Scaled dot-product attention with grouped kv heads (arXiv 2305.13245): torch's kernels, or plain with dropout."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.ops.philox import dropout


def attention(
    q_bshd: Tensor,
    k_bskd: Tensor,
    v_bskd: Tensor,
    *,
    mask_b1ss: Tensor | None,
    causal: bool,
    dropout_p: float = 0.0,
    dropout_key: int = 0,
    rows_bs: Tensor | None = None,
    head_offset: int = 0,
    heads_total: int = 0,
) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v as [b, s, heads, d].

    `mask_b1ss` (True: may look) replaces `causal` when given. kv heads divide q heads; q head h reads kv head
    h // group. With dropout the probabilities of global token `rows_bs`, global head `head_offset` + h are dropped
    by Philox row token * heads_total + head; they are then held in full.
    """
    q, k, v = (x.transpose(1, 2) for x in (q_bshd, k_bskd, v_bskd))
    if dropout_p == 0.0:
        if q.is_cpu and q.dtype in (torch.bfloat16, torch.float16):
            # torch's 16-bit products on CPUs without such units are some 50 times slower than float32
            out = F.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), mask_b1ss, is_causal=causal and mask_b1ss is None, enable_gqa=True
            )
            return out.to(q.dtype).transpose(1, 2)
        return F.scaled_dot_product_attention(
            q, k, v, mask_b1ss, is_causal=causal and mask_b1ss is None, enable_gqa=q.shape[1] != k.shape[1]
        ).transpose(1, 2)
    assert rows_bs is not None, "dropout needs token positions"
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    s = q.shape[2]
    if mask_b1ss is None and causal:
        mask_b1ss = torch.ones(s, s, dtype=torch.bool, device=q.device).tril()
    wide = q.dtype if q.dtype == torch.float64 else torch.float32
    scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)) / math.sqrt(q.shape[-1])
    if mask_b1ss is not None:
        scores = scores.masked_fill(~mask_b1ss, -math.inf)
    heads = torch.arange(q.shape[1], device=q.device) + head_offset
    rows_bhs = rows_bs[:, None, :] * heads_total + heads[:, None]
    probs = dropout(scores.softmax(dim=-1), dropout_p, dropout_key, rows_bhs, s)
    return (probs @ v.to(wide)).to(q.dtype).transpose(1, 2)
