"""Scaled dot-product attention with grouped kv heads (arXiv 2305.13245) over ranges of visible keys.

Backends: the engine's own blocked kernel on CPUs (FlashAttention-2, arXiv 2307.08691); on GPUs flash-attn for plain
causal attention, and torch's kernel for the rest. What these do not know is written out plainly. Saved for backward by
our kernel: the packed input, the output, and one number a query and head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.ops import backend
from engine.ops.dropout import dropout
from engine.ops.key_ranges import KeyRanges
from engine.ops.libraries import flash
from engine.ops.softmax import masked_softmax


@dataclass(frozen=True)
class Relative:
    """Relative positions of Transformer-XL (arXiv 1901.02860): keys that stand for distances, and biases of queries.

    A score is (q + u) k + (q + v) r of the distance; keys ahead of a query are at distance 0.
    """

    u_hd: Tensor
    v_hd: Tensor
    r_shd: Tensor  # row t: of distance t


@dataclass(frozen=True)
class Scores:
    """How scores become logits: cap(scale * score) + bias - slope * distance; see `masked_softmax` for each.

    `scale` is 1 / sqrt(d) when None, `cap` 0 for none. `bias_hss` [heads, s, s] may need a gradient.
    """

    scale: float | None = None
    cap: float = 0.0
    slopes_h: Tensor | None = None
    bias_hss: Tensor | None = None
    relative: Relative | None = None

    def scale_of(self, d: int) -> float:
        """Return the factor of the scores of heads with d dimensions."""
        return 1.0 / math.sqrt(d) if self.scale is None else self.scale


@dataclass(frozen=True)
class Drop:
    """Dropout of probabilities: those of global token `rows_bs` and global head `head_offset` + h are row token *
    heads_total + head of the stream `key`, so that every layout drops the same ones."""

    p: float
    key: int
    rows_bs: Tensor
    head_offset: int
    heads_total: int


PLAIN = Scores()


def attention(
    qkv_bsgd: Tensor,
    heads: int,
    kv_heads: int,
    keys: KeyRanges,
    *,
    scores: Scores = PLAIN,
    drop: Drop | None = None,
) -> Tensor:
    """Return softmax(logits) v as [b, s, heads, d]; a query that sees no key gives zeros.

    `qkv_bsgd` holds `heads` queries, then `kv_heads` keys, then as many values; query head h reads kv head
    h // (heads / kv_heads). With dropout, biases that are learned, and caps on other backends than flash-attn,
    attention is written out: its probabilities are held in full.
    """
    runs_on = backend.choose("attention", qkv_bsgd)
    on_flash = runs_on == "flash" and keys.is_causal
    if drop or scores.bias_hss is not None or scores.relative or (scores.cap and not on_flash):
        return _written(qkv_bsgd, heads, kv_heads, keys, scores, drop)
    scale, slopes_h = scores.scale_of(qkv_bsgd.shape[-1]), scores.slopes_h
    if runs_on == "native":
        return _Attention.apply(qkv_bsgd, heads, kv_heads, keys, slopes_h, scale)
    if on_flash:
        q_bshd, k_bskd, v_bskd = qkv_bsgd.split((heads, kv_heads, kv_heads), dim=2)
        return flash.attention(
            q_bshd, k_bskd, v_bskd, causal=True, scale=scores.scale, softcap=scores.cap, alibi_slopes=slopes_h
        )
    q_bhsd, k_bhsd, v_bhsd = _split(qkv_bsgd, heads, kv_heads)
    wide = _wide_on_cpu(qkv_bsgd.dtype) if qkv_bsgd.is_cpu else qkv_bsgd.dtype
    q_bhsd, k_bhsd, v_bhsd = q_bhsd.to(wide), k_bhsd.to(wide), v_bhsd.to(wide)
    options: dict[str, Any] = {"enable_gqa": heads != kv_heads, "scale": scores.scale}
    if slopes_h is None and keys.is_causal:
        out_bhsd = F.scaled_dot_product_attention(q_bhsd, k_bhsd, v_bhsd, is_causal=True, **options)
    else:
        mask = keys.mask_b1ss if slopes_h is None else _bias(keys, slopes_h).to(wide)
        out_bhsd = F.scaled_dot_product_attention(q_bhsd, k_bhsd, v_bhsd, mask, **options)
        sees_b1s1 = (keys.first_bs <= keys.last_bs)[:, None, :, None]
        out_bhsd = torch.where(sees_b1s1, out_bhsd, 0.0)
    return out_bhsd.to(qkv_bsgd.dtype).transpose(1, 2)


def _written(qkv_bsgd: Tensor, heads: int, kv_heads: int, keys: KeyRanges, scores: Scores, drop: Drop | None) -> Tensor:
    q_bhsd, k_bhsd, v_bhsd = _split(qkv_bsgd, heads, kv_heads)
    k_bhsd, v_bhsd = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k_bhsd, v_bhsd))
    wide = _wide_on_cpu(qkv_bsgd.dtype)
    q_bhsd, k_bhsd = q_bhsd.to(wide), k_bhsd.to(wide)
    if scores.relative is None:
        scores_bhss = q_bhsd @ k_bhsd.transpose(-1, -2)
    else:
        scores_bhss = _relative(q_bhsd, k_bhsd, scores.relative)
    probs_bhss = masked_softmax(
        scores_bhss, keys, scale=scores.scale_of(qkv_bsgd.shape[-1]), cap=scores.cap, slopes_h=scores.slopes_h,
        bias_hss=None if scores.bias_hss is None else scores.bias_hss.to(wide),
    )  # fmt: skip
    if drop is not None:
        heads_h = torch.arange(heads, device=qkv_bsgd.device) + drop.head_offset
        rows_bhs = drop.rows_bs[:, None, :] * drop.heads_total + heads_h[:, None]
        probs_bhss = dropout(probs_bhss, drop.p, drop.key, rows_bhs, scores_bhss.shape[-1])
    return (probs_bhss @ v_bhsd.to(wide)).to(qkv_bsgd.dtype).transpose(1, 2)


def _relative(q_bhsd: Tensor, k_bhsd: Tensor, relative: Relative) -> Tensor:
    """Return the scores [b, heads, s, s] with what distances add to them."""
    u_hd, v_hd, r_shd = (x.to(q_bhsd.dtype) for x in (relative.u_hd, relative.v_hd, relative.r_shd))
    by_content = (q_bhsd + u_hd[:, None]) @ k_bhsd.transpose(-1, -2)
    by_distance_bhst = (q_bhsd + v_hd[:, None]) @ r_shd.permute(1, 2, 0)
    places_s = torch.arange(q_bhsd.shape[2], device=q_bhsd.device)
    distance_ss = (places_s[:, None] - places_s).clamp(min=0)
    return by_content + by_distance_bhst.gather(-1, distance_ss.expand_as(by_content))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv_bsgd: Tensor,
        heads: int,
        kv_heads: int,
        keys: KeyRanges,
        slopes_h: Tensor | None,
        scale: float,
    ) -> Tensor:
        if qkv_bsgd.stride(-1) != 1:
            qkv_bsgd = qkv_bsgd.contiguous()
        parts = qkv_bsgd.split((heads, kv_heads, kv_heads), dim=2)
        out_bshd, lse_bhs = torch.ops.trimaran.attention(*parts, keys.first_bs, keys.last_bs, slopes_h, scale, 0)
        ctx.save_for_backward(qkv_bsgd, out_bshd, lse_bhs)
        ctx.heads, ctx.keys, ctx.slopes_h, ctx.scale = (heads, kv_heads, kv_heads), keys, slopes_h, scale
        return out_bshd

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        qkv_bsgd, out_bshd, lse_bhs = ctx.saved_tensors
        dout_bshd = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        dqkv_bsgd = torch.empty_like(qkv_bsgd)
        torch.ops.trimaran.attention_backward_(
            dout_bshd, *qkv_bsgd.split(ctx.heads, dim=2), out_bshd, lse_bhs, ctx.keys.first_bs, ctx.keys.last_bs,
            ctx.slopes_h, ctx.scale, 0, *dqkv_bsgd.split(ctx.heads, dim=2),
        )  # fmt: skip
        return dqkv_bsgd, *[None] * 5


def _split(qkv_bsgd: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, ...]:
    return qkv_bsgd.transpose(1, 2).split((heads, kv_heads, kv_heads), dim=1)


def _wide_on_cpu(dtype: torch.dtype) -> torch.dtype:
    """torch's 16-bit products on CPUs without such units are some 50 times slower than float32."""
    return dtype if dtype == torch.float64 else torch.float32


def _bias(keys: KeyRanges, slopes_h: Tensor) -> Tensor:
    """Return ALiBi's bias with -inf where a query does not see a key, [b, heads, s, s]."""
    places_s = torch.arange(keys.first_bs.shape[1], device=slopes_h.device)
    bias_1hss = slopes_h[:, None, None] * (places_s[None, :] - places_s[:, None])
    return bias_1hss.masked_fill(~keys.mask_b1ss, -math.inf)
