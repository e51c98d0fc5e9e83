"""Rotary position embedding (arXiv 2104.09864), half-split pairing: feature i turns with feature i + d/2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.ops import backend


def rope_tables(positions: Tensor, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin [..., dim/2] of the angles position * theta^(-2i/dim), in float32.

    Published checkpoints were trained with float32 angles, so these are float32 in every precision.
    """
    frequency = 1.0 / (theta ** (torch.arange(0, dim, 2, device=positions.device).float() / dim))
    angle = positions[..., None].float() * frequency
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if backend.native("rope", x) and x.stride(-1) == 1:
        return torch.ops.trimaran.rope(x, cos, sin)
    cos, sin = cos.unsqueeze(-2).to(x.dtype), sin.unsqueeze(-2).to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, -sin), None, None


def rope(x_bshd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [b, s, heads, d] by tables [s, d/2] or [b, s, d/2]; nothing but the tables is saved."""
    return _Rope.apply(x_bshd, cos, sin)
