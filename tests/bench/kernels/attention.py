"""Attention and softmax."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.ops.attention import attention
from engine.ops.key_ranges import KeyRanges
from engine.ops.softmax import masked_softmax
from tests.bench.kernels.case import Case

CPU = torch.device("cpu")


def sdpa(qkv_bsgd: Tensor, heads: int) -> Tensor:
    """Causal attention of packed heads by torch's own kernel."""
    q, k, v = qkv_bsgd.transpose(1, 2).split((heads, heads, heads), dim=1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def attention_case(b: int, s: int, heads: int, d: int) -> Case:
    qkv = torch.randn(b, s, 3 * heads, d, requires_grad=True)
    gradient, keys = torch.randn(b, s, heads, d), KeyRanges.causal(s, CPU)

    def plain() -> Tensor:
        q, k, v = qkv.transpose(1, 2).split((heads, heads, heads), dim=1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(d)
        mask = torch.ones(s, s, dtype=torch.bool).tril()
        return (scores.masked_fill(~mask, -math.inf).softmax(-1) @ v).transpose(1, 2)

    eager = {"SDPA": lambda: torch.autograd.grad(sdpa(qkv, heads), qkv, gradient)}
    if s <= 1024:
        eager["plain"] = lambda: torch.autograd.grad(plain(), qkv, gradient)
    return Case(
        f"causal attention fp32, {b} x {s}, {heads} heads of {d}",
        lambda: torch.autograd.grad(attention(qkv, heads, heads, keys), qkv, gradient),
        eager, operations=7 * b * heads * s * s * d,
    )  # fmt: skip


def softmax_case(b: int, h: int, s: int) -> Case:
    scores, gradient = torch.randn(b, h, s, s, requires_grad=True), torch.randn(b, h, s, s)
    keys, mask = KeyRanges.causal(s, CPU), torch.ones(s, s, dtype=torch.bool).tril()
    bias = torch.zeros(s, s).masked_fill(~mask, -math.inf)

    def filled(x: Tensor) -> Tensor:
        return (x * 0.125).masked_fill(~mask, -math.inf).softmax(-1)

    def added(x: Tensor) -> Tensor:
        return (x * 0.125 + bias).softmax(-1)

    compiled = torch.compile(added)
    return Case(
        f"scaled causal softmax fp32, {b} x {h} x {s} x {s}",
        lambda: torch.autograd.grad(masked_softmax(scores, keys, scale=0.125), scores, gradient),
        {
            "masked_fill": lambda: torch.autograd.grad(filled(scores), scores, gradient),
            "added mask": lambda: torch.autograd.grad(added(scores), scores, gradient),
        },
        lambda: torch.autograd.grad(compiled(scores), scores, gradient),
        moved=5 * scores.nbytes,
    )


def cases() -> Iterator[Case]:
    yield softmax_case(2, 8, 512)
    for s, b in ((512, 4), (1024, 2), (2048, 1), (4096, 1)):
        yield attention_case(b, s, 6, 64)
    for s, b in ((512, 4), (2048, 1), (4096, 1)):
        yield attention_case(b, s, 3, 128)
