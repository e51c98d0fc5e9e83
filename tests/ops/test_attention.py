"""Attention against explicit probabilities in float64, with masks, grouped heads and dropout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.ops.attention import attention
from engine.ops.philox import make_key, random_bits
from tests.ops.witness import check, check_bf16, draw

pytestmark = pytest.mark.usefixtures("each_backend")

B, S, D = 2, 9, 6
CAUSAL = torch.ones(S, S, dtype=torch.bool).tril()
DOCUMENTS = CAUSAL & (torch.arange(S)[:, None] // 4 == torch.arange(S)[None] // 4)


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, factor: Tensor | float = 1.0) -> Tensor:
    """Softmax over keys, every probability times `factor` [b, heads, s, s]."""
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / D**0.5
    probs = scores.masked_fill(~mask, -torch.inf).softmax(-1) * factor
    return torch.einsum("bhqk,bkhd->bqhd", probs.to(v.dtype), v)


def inputs(heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    return draw(1, B, S, heads, D), draw(2, B, S, kv_heads, D), draw(3, B, S, kv_heads, D)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(heads: int, kv_heads: int, masked: bool) -> None:
    mask_b1ss = DOCUMENTS.expand(B, 1, S, S) if masked else None
    check(
        lambda q, k, v: attention(q, k, v, mask_b1ss=mask_b1ss, causal=True),
        lambda q, k, v: plain(q, k, v, DOCUMENTS if masked else CAUSAL),
        *inputs(heads, kv_heads),
    )


def test_attention_that_is_not_causal() -> None:
    full = torch.ones(S, S, dtype=torch.bool)
    check(
        lambda q, k, v: attention(q, k, v, mask_b1ss=None, causal=False),
        lambda q, k, v: plain(q, k, v, full),
        *inputs(2, 2),
    )


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_attention_in_bf16(heads: tuple[int, int]) -> None:
    check_bf16(
        lambda q, k, v: attention(q, k, v, mask_b1ss=None, causal=True),
        lambda q, k, v: plain(q, k, v, CAUSAL),
        *inputs(*heads),
        ulps=2,
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("offset", [0, 4])
def test_dropout_is_addressed_by_global_token_and_head(masked: bool, offset: int) -> None:
    heads, heads_total, p, key = 4, 8, 0.3, make_key(5, "attention")
    rows_bs = torch.arange(B)[:, None] * 100 + 17 + torch.arange(S)
    rows = rows_bs[:, None, :, None] * heads_total + offset + torch.arange(heads)[:, None, None]
    kept = random_bits(key, rows * S + torch.arange(S)) >= int(p * 2**32)
    mask_b1ss = DOCUMENTS.expand(B, 1, S, S) if masked else None
    check(
        lambda q, k, v: attention(
            q, k, v, mask_b1ss=mask_b1ss, causal=True, dropout_p=p, dropout_key=key, rows_bs=rows_bs,
            head_offset=offset, heads_total=heads_total,
        ),
        lambda q, k, v: plain(q, k, v, DOCUMENTS if masked else CAUSAL, kept.double() / (1 - p)),
        *inputs(heads, 2),
    )  # fmt: skip
