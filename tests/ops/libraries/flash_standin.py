"""flash-attn as its documentation describes it, on any device, in float64 inside (float32 where it says so)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    assert q.dtype in (torch.float16, torch.bfloat16), "FlashAttention only support fp16 and bf16 data type"
    assert k.dtype == v.dtype == q.dtype, "query, key and value must have the same dtype"
    assert k.device == v.device == q.device
    assert q.shape[-1] <= 256, "FlashAttention forward only supports head dimension at most 256"
    assert k.shape == v.shape
    assert q.shape[-1] == k.shape[-1]
    assert q.shape[-2] % k.shape[-2] == 0, "Number of heads in key/value must divide number of heads in query"


def _one_sequence(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool, window: tuple[int, int], softcap: float,
    alibi_slopes: Tensor | None,
) -> Tensor:  # fmt: skip
    """q [sq, heads, d], k and v [sk, kv heads, d]; the masks are aligned to the bottom right corner."""
    group = q.shape[1] // k.shape[1]
    wide_q, wide_k, wide_v = q.double(), *(x.double().repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("ihd,jhd->hij", wide_q, wide_k) * (scale or q.shape[-1] ** -0.5)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))
    if alibi_slopes is not None:
        scores = scores - alibi_slopes.double()[:, None, None] * distance.abs()
    left, right = window[0], 0 if causal else window[1]
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if left >= 0:
        hidden |= distance > left
    if right >= 0:
        hidden |= distance < -right
    probabilities = scores.masked_fill(hidden, -math.inf).softmax(-1)
    return torch.einsum("hij,jhd->ihd", probabilities, wide_v).to(q.dtype)


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Tensor | None = None,
    deterministic: bool = False, return_attn_probs: bool = False,
) -> Tensor:  # fmt: skip
    assert q.dim() == k.dim() == v.dim() == 4
    assert q.shape[0] == k.shape[0] > 0, "batch size must be positive"
    assert not return_attn_probs
    assert dropout_p == 0.0, "it draws from a generator of its own"
    assert deterministic, "a resumed run would not repeat itself"
    _check_qkv(q, k, v)
    batch, heads = q.shape[0], q.shape[2]
    if alibi_slopes is not None:
        assert alibi_slopes.dtype == torch.float32, "ALiBi slopes must have dtype fp32"
        assert alibi_slopes.shape in ((heads,), (batch, heads))
        assert alibi_slopes.stride(-1) == 1
        alibi_slopes = alibi_slopes.expand(batch, heads)
    rows = [
        _one_sequence(
            q[b], k[b], v[b], softmax_scale, causal, window_size, softcap,
            None if alibi_slopes is None else alibi_slopes[b],
        )
        for b in range(batch)
    ]  # fmt: skip
    return torch.stack(rows)


def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Tensor | None = None,
    deterministic: bool = False, return_attn_probs: bool = False, block_table: Tensor | None = None,
) -> Tensor:  # fmt: skip
    assert q.dim() == k.dim() == v.dim() == 3
    assert block_table is None
    parts = []
    for cu_seqlens, longest, total in ((cu_seqlens_q, max_seqlen_q, len(q)), (cu_seqlens_k, max_seqlen_k, len(k))):
        assert cu_seqlens.dtype == torch.int32, "cu_seqlens must have dtype int32"
        assert cu_seqlens.device == q.device
        assert cu_seqlens.is_contiguous()
        assert isinstance(longest, int)
        assert cu_seqlens[0] == 0
        assert cu_seqlens[-1] == total
        assert 0 < int(cu_seqlens.diff().max()) <= longest
    bounds = zip(cu_seqlens_q.tolist(), cu_seqlens_q.tolist()[1:], cu_seqlens_k.tolist(), cu_seqlens_k.tolist()[1:],
                 strict=False)  # fmt: skip
    for q0, q1, k0, k1 in bounds:
        out = flash_attn_func(
            q[None, q0:q1], k[None, k0:k1], v[None, k0:k1], dropout_p, softmax_scale, causal, window_size, softcap,
            alibi_slopes, deterministic, return_attn_probs,
        )  # fmt: skip
        parts.append(out[0])
    return torch.cat(parts)


def apply_rotary(
    x: Tensor, cos: Tensor, sin: Tensor, seqlen_offsets: int | Tensor = 0, cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None, interleaved: bool = False, inplace: bool = False, conjugate: bool = False,
) -> Tensor:  # fmt: skip
    assert cu_seqlens is None
    assert max_seqlen is None
    batch, seqlen, _, headdim = x.shape
    seqlen_ro, half = cos.shape
    assert sin.shape == cos.shape
    assert 2 * half <= headdim <= 256, "rotary_dim must be <= headdim, Only support headdim <= 256"
    assert seqlen_ro >= seqlen, "seqlen_ro must be >= seqlen"
    if isinstance(seqlen_offsets, Tensor):
        assert seqlen_offsets.shape == (batch,)
        assert seqlen_offsets.dtype in (torch.int32, torch.int64)
        assert seqlen_offsets.device == x.device
        first = seqlen_offsets
    else:
        assert seqlen_offsets + seqlen <= seqlen_ro
        first = torch.full((batch,), seqlen_offsets)
    rows = first[:, None] + torch.arange(seqlen)
    cos_bs1r, sin_bs1r = cos.float()[rows][:, :, None], sin.float()[rows][:, :, None] * (-1 if conjugate else 1)
    out = x if inplace else torch.empty_like(x)
    turned = x[..., : 2 * half].float()
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, dim=-1)
    pair = [a * cos_bs1r - b * sin_bs1r, a * sin_bs1r + b * cos_bs1r]
    out[..., 2 * half :] = x[..., 2 * half :]
    out[..., : 2 * half] = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    return out


class _CrossEntropyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float, z: float, inplace: bool, group: Any) -> Any:
        n_rows, n_cols = logits.shape
        assert labels.shape == (n_rows,)
        assert labels.dtype == torch.int64
        assert labels.device == logits.device
        world = 1 if group is None else dist.get_world_size(group)
        first = 0 if group is None else dist.get_rank(group) * n_cols
        wide, held = logits.float(), (labels >= first) & (labels < first + n_cols)
        label_logits = wide.gather(1, (labels - first).clamp(0, n_cols - 1)[:, None])[:, 0]
        losses = -smoothing * wide.sum(1) / (world * n_cols) - (1 - smoothing) * label_logits * held
        lse = wide.logsumexp(1)
        if world > 1:
            all_lse = torch.empty(world * n_rows)
            dist.all_gather_into_tensor(all_lse, lse, group=group)
            dist.all_reduce(losses, group=group)
            lse = all_lse.view(world, n_rows).logsumexp(0)
        z_losses = z * lse.square()
        ctx.save_for_backward(logits, lse, labels)
        ctx.mark_non_differentiable(z_losses)
        ctx.options = (smoothing, z, inplace, world * n_cols, first)
        return losses + lse + z_losses, z_losses

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        logits, lse, labels = ctx.saved_tensors
        smoothing, z, inplace, total, first = ctx.options
        probs = (logits.float() - lse[:, None]).exp() * (1 + 2 * z * lse[:, None]) - smoothing / total
        hit = labels[:, None] - first == torch.arange(logits.shape[1])
        gradient = ((probs - (1 - smoothing) * hit) * grads[0][:, None]).to(logits.dtype)
        if inplace:
            logits.data.copy_(gradient)
            gradient = logits
        return gradient, None, None, None, None, None


def cross_entropy_loss(
    logits: Tensor, labels: Tensor, precomputed_lse: Tensor | None = None, label_smoothing: float = 0.0,
    logit_scale: float = 1.0, lse_square_scale: float = 0.0, ignore_index: int = -100, inplace_backward: bool = False,
    process_group: Any = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    assert precomputed_lse is None
    assert logit_scale == 1.0
    assert ignore_index == -100
    return _CrossEntropyLoss.apply(logits, labels, label_smoothing, lse_square_scale, inplace_backward, process_group)
