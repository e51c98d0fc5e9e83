"""Rotary position embedding (arXiv 2104.09864).

The angles are float32 in every precision; products are taken in float32 (float64 for float64) and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.ops import backend
from engine.ops.libraries import flash


class Stretch(NamedTuple):
    """Slow rotations made slower, so that longer contexts look like the known one (Llama 3.1, arXiv 2407.21783).

    Frequencies that turn less than `low` times in `context` tokens are divided by `factor`, those that turn more than
    `high` times stay, and in between the two are mixed. A `factor` of 1 changes nothing.
    """

    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    context: int = 8192

    def apply(self, frequency: Tensor) -> Tensor:
        """Return the frequencies (radians a token) that replace these."""
        if self.factor == 1.0:
            return frequency
        turns = self.context * frequency / (2 * math.pi)
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return (1 - kept) * frequency / self.factor + kept * frequency


def rope_tables(
    positions: Tensor, dim: int, theta: float, stretch: Stretch = Stretch()
) -> tuple[Tensor, Tensor]:  # a tuple: nothing can change it
    """Return cos and sin [..., dim/2] of the angles position * theta^(-2i/dim), stretched, in float32.

    Published checkpoints were trained with float32 angles, so these are float32 in every precision.
    """
    frequency = 1.0 / (theta ** (torch.arange(0, dim, 2, device=positions.device).float() / dim))
    angle = positions[..., None].float() * stretch.apply(frequency)
    return angle.cos(), angle.sin()


def _turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Return x [b, s, heads, r], rotated by tables [s, r/2] or [b, s, r/2]."""
    wide = x if x.dtype == torch.float64 else x.float()
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    if interleaved:
        a, b = wide.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    else:
        a, b = wide.chunk(2, dim=-1)
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return turned.to(x.dtype)


def _rotate_(x: Tensor, cos: Tensor, sin: Tensor, heads: int, interleaved: bool, inverse: bool) -> Tensor:
    runs_on = backend.choose("rope", x)
    if runs_on == "native":
        torch.ops.trimaran.rope_(x, cos, sin, heads, interleaved, inverse)
        return x
    if runs_on == "flash":
        flash.rotate(x[:, :, :heads], cos, sin, interleaved=interleaved, back=inverse, inplace=True)
        return x
    turning = x[:, :, :heads, : 2 * cos.shape[-1]]
    turning.copy_(_turned(turning, cos, -sin if inverse else sin, interleaved))
    return x


class _RopeInPlace(torch.autograd.Function):
    """x, cos, sin, shape [b, s, g, d] of x, heads, interleaved -> x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, shape: Sequence[int], heads: int, interleaved: bool
    ) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.shape, ctx.heads, ctx.interleaved = shape, heads, interleaved
        ctx.mark_dirty(x)
        _rotate_(x.view(shape), cos, sin, heads, interleaved, inverse=False)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        cos, sin = ctx.saved_tensors
        grad = grads[0].contiguous()
        _rotate_(grad.view(ctx.shape), cos, sin, ctx.heads, ctx.interleaved, inverse=True)
        return grad, None, None, None, None, None


def rope_(
    x_bsgd: Tensor, cos: Tensor, sin: Tensor, heads: int, interleaved: bool = False, head_dim: int | None = None
) -> Tensor:
    """Rotate the first `heads` heads of a packed projection in place, and return it.

    `x_bsgd` is contiguous [b, s, g, d], or [b, s, g * d] with `head_dim` = d: heads of q, then of k, then of v, which
    stay as they are. Tables are float32 [s, r/2] or [b, s, r/2] with r <= d; of each head the first r features turn:
    i with i + r/2 as in Llama, or, `interleaved`, 2i with 2i + 1 as in GPT-J. Raises ValueError where these do not fit.

    The gradient of the result is overwritten too: nobody else may use it, so the result must have one consumer, which
    makes a gradient of its own (attention does). Autograd copies the gradients of views several times: give the
    projection's output itself, in three dimensions, and view the result.
    """
    if not x_bsgd.is_contiguous():
        raise ValueError("rope_ works in place and takes a contiguous tensor.")
    shape = x_bsgd.shape if head_dim is None else (*x_bsgd.shape[:2], x_bsgd.shape[2] // head_dim, head_dim)
    if len(shape) != 4 or math.prod(shape) != x_bsgd.numel():
        raise ValueError(
            f"rope_ takes [b, s, g, d], or [b, s, g * d] and head_dim; not {tuple(x_bsgd.shape)}, {head_dim}."
        )
    (b, s, g, d), half = shape, cos.shape[-1]
    if not 0 <= heads <= g:
        raise ValueError(f"rope_ cannot turn {heads} of {g} heads.")
    if 2 * half > d or cos.shape != sin.shape or cos.shape not in ((s, half), (b, s, half)):
        raise ValueError(f"rope_: tables {tuple(cos.shape)} do not fit {b} x {s} positions and heads of {d} features.")
    return _RopeInPlace.apply(x_bsgd, cos, sin, shape, heads, interleaved)
