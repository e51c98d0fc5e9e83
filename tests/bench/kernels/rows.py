"""Norms, activations, rotary positions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.ops.activation import swiglu
from engine.ops.norm import add_rms_norm
from engine.ops.rope import rope_, rope_tables
from tests.bench.kernels.case import Case


def norm_case(rows: int, h: int) -> Case:
    x, residual = (torch.randn(rows, h, requires_grad=True) for _ in range(2))
    weight = torch.randn(h, requires_grad=True)
    gradients = torch.randn(rows, h), torch.randn(rows, h)

    def composed(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, (h,), weight, 1e-5), total

    def written_out(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-5) * weight, total

    inputs, compiled = (x, residual, weight), torch.compile(written_out)
    return Case(
        f"RMSNorm + residual fp32, {rows} x {h}",
        lambda: torch.autograd.grad(add_rms_norm(*inputs, 1e-5), inputs, gradients),
        {
            "F.rms_norm": lambda: torch.autograd.grad(composed(*inputs), inputs, gradients),
            "written out": lambda: torch.autograd.grad(written_out(*inputs), inputs, gradients),
        },
        lambda: torch.autograd.grad(compiled(*inputs), inputs, gradients),
        moved=8 * x.nbytes,  # read x, residual; write total, y; read dy, dtotal, total; write dx
    )


def swiglu_case(rows: int, f: int) -> Case:
    x, gradient = torch.randn(rows, 2 * f, requires_grad=True), torch.randn(rows, f)
    gate, up = (torch.randn(rows, f, requires_grad=True) for _ in range(2))

    def halves(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    compiled = torch.compile(halves)
    return Case(
        f"SwiGLU fp32, {rows} x 2 x {f}",
        lambda: torch.autograd.grad(swiglu(x), x, gradient),
        {
            "one tensor": lambda: torch.autograd.grad(halves(x), x, gradient),
            "two tensors": lambda: torch.autograd.grad(F.silu(gate) * up, (gate, up), gradient),
        },
        lambda: torch.autograd.grad(compiled(x), x, gradient),
        moved=8 * gradient.nbytes,  # read gate, up; write y; read dy, gate, up; write dgate, dup
    )


def rope_case(s: int, heads: int, kv_heads: int, d: int) -> Case:
    """Queries and keys of a packed projection; the values' heads lie beside them."""
    packed = torch.randn(1, s, (heads + 2 * kv_heads) * d)
    gradient = torch.randn(1, s, heads + 2 * kv_heads, d)
    q, k = (torch.randn(1, s, n, d, requires_grad=True) for n in (heads, kv_heads))
    dq, dk = torch.randn_like(q), torch.randn_like(k)
    cos, sin = rope_tables(torch.arange(s), d, 1e4)
    turned = heads + kv_heads

    class Source(torch.autograd.Function):
        """Stands for the projection: gives the same memory each time, so that nothing but the rotation is timed."""

        @staticmethod
        def forward(ctx: Any, anchor: Tensor) -> Tensor:
            return packed.detach()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return grads[0].new_zeros(())

    anchor = torch.zeros((), requires_grad=True)

    def ours() -> None:
        out = rope_(Source.apply(anchor), cos, sin, turned, head_dim=d)
        torch.autograd.grad(out, anchor, gradient.view_as(packed))

    def rotated(x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        c, n = cos[:, None], sin[:, None]
        return torch.cat([a * c - b * n, b * c + a * n], dim=-1)

    def both(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return rotated(q), rotated(k)

    compiled = torch.compile(both)
    return Case(
        f"RoPE fp32, {s} tokens, {heads} + {kv_heads} heads of {d}",
        ours,
        {"chunk and cat": lambda: torch.autograd.grad(both(q, k), (q, k), (dq, dk))},
        lambda: torch.autograd.grad(compiled(q, k), (q, k), (dq, dk)),
        moved=4 * (q.nbytes + k.nbytes),
    )


def cases() -> Iterator[Case]:
    yield norm_case(4096, 1024)
    yield swiglu_case(4096, 2816)
    yield rope_case(4096, 16, 4, 64)
