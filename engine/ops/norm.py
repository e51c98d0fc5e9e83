"""RMSNorm and LayerNorm over the last dimension, alone or of a sum with the residual stream.

Saved for backward: the normalised tensor's input and one number a row (LayerNorm: two), in float32 (float64 for
float64); a linear layer that follows keeps nothing more (`engine.ops.recipe`). Statistics and gradients of weights are
float32 too, and are rounded once where they leave.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.ops import backend
from engine.ops.gradient import deliver
from engine.ops.libraries import apex
from engine.ops.recipe import with_recipe


def _wide(x: Tensor) -> Tensor:
    """Statistics are taken in float32 at least."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _wide_or_none(x: Tensor | None) -> Tensor | None:
    return None if x is None else _wide(x)


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


class _RMSNorm(torch.autograd.Function):
    """x, residual or None, weight, eps -> y, or (y, total) where there is a residual."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Any:
        ctx.set_materialize_grads(False)
        runs_on = backend.choose("rms_norm", x)
        if runs_on == "native":
            y, total, rstd = torch.ops.trimaran.rms_norm(x.contiguous(), _contiguous(residual), weight, eps)
        elif runs_on == "apex":
            total = x if residual is None else x + residual
            y, rstd = apex.rms_norm(total, weight, eps)
        else:
            total = x if residual is None else x + residual
            wide = _wide(total)
            rstd = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
            y = (wide * rstd * weight).to(x.dtype)
        ctx.save_for_backward(x if residual is None else total, rstd)
        ctx.weight = weight
        return y if residual is None else (y, total)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (dy, dtotal), (x, rstd), weight = (*grads, None)[:2], ctx.saved_tensors, ctx.weight
        if dy is None:
            return dtotal, dtotal, None, None
        runs_on = backend.choose("rms_norm", x)
        if runs_on == "native":
            dx, dw = torch.ops.trimaran.rms_norm_backward(
                dy.contiguous(), _contiguous(dtotal), x.contiguous(), weight, rstd
            )
        elif runs_on == "apex":
            dx, dw = apex.rms_norm_backward(dy, x, weight, rstd)
            dx = dx if dtotal is None else dx + dtotal
        else:
            dy, normed = _wide(dy), _wide(x) * rstd
            dnormed = dy * weight
            dx = rstd * (dnormed - normed * (dnormed * normed).mean(-1, keepdim=True))
            dx = (dx if dtotal is None else dx + dtotal).to(x.dtype)
            dw = (dy * normed).flatten(0, -2).sum(0)
        return dx, _to_residual(ctx, dx), deliver(weight, dw), None


class _LayerNorm(torch.autograd.Function):
    """x, residual or None, weight, bias or None, eps -> y, or (y, total) where there is a residual."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float) -> Any:
        ctx.set_materialize_grads(False)
        runs_on = backend.choose("layer_norm", x)
        if runs_on == "native":
            y, total, mean, rstd = torch.ops.trimaran.layer_norm(
                x.contiguous(), _contiguous(residual), weight, bias, eps
            )
        elif runs_on == "apex":
            total = x if residual is None else x + residual
            y, mean, rstd = apex.layer_norm(total, weight, bias, eps)
        else:
            total = x if residual is None else x + residual
            y, mean, rstd = torch.native_layer_norm(_wide(total), x.shape[-1:], _wide(weight), _wide_or_none(bias), eps)
            y = y.to(x.dtype)
        ctx.save_for_backward(x if residual is None else total, mean, rstd)
        ctx.weight, ctx.bias = weight, bias
        return y if residual is None else (y, total)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (dy, dtotal), (x, mean, rstd) = (*grads, None)[:2], ctx.saved_tensors
        weight, bias = ctx.weight, ctx.bias
        if dy is None:
            return dtotal, dtotal, None, None, None
        runs_on = backend.choose("layer_norm", x)
        if runs_on == "native":
            dx, dw, db = torch.ops.trimaran.layer_norm_backward(
                dy.contiguous(), _contiguous(dtotal), x.contiguous(), weight, mean, rstd
            )
        elif runs_on == "apex":
            dx, dw, db = apex.layer_norm_backward(dy, x, weight, bias, mean, rstd)
            dx = dx if dtotal is None else dx + dtotal
        else:
            dx, dw, db = torch.ops.aten.native_layer_norm_backward(
                _wide(dy), _wide(x), x.shape[-1:], mean, rstd, _wide(weight), _wide_or_none(bias),
                [True, True, bias is not None],
            )  # fmt: skip
            dx = (dx if dtotal is None else dx + dtotal).to(x.dtype)
        return dx, _to_residual(ctx, dx), deliver(weight, dw), None if bias is None else deliver(bias, db), None


def _to_residual(ctx: Any, dx: Tensor) -> Tensor | None:
    """The gradient of a sum is the same tensor for both of its terms."""
    return dx if ctx.needs_input_grad[1] else None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight for x [..., h] (arXiv 1910.07467)."""
    y = _RMSNorm.apply(x, None, weight, eps)
    return with_recipe(y, partial(rms_norm, weight=weight, eps=eps), x)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) * weight + bias for x [..., h] (arXiv 1607.06450)."""
    y = _LayerNorm.apply(x, None, weight, bias, eps)
    return with_recipe(y, partial(layer_norm, weight=weight, bias=bias, eps=eps), x)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (rms_norm(total), total) for total = x + residual, all [..., h] of one dtype.

    The total is rounded to that dtype before it is normalised. In backward x and residual receive one and the same
    gradient tensor: do not write into it.
    """
    y, total = _RMSNorm.apply(x, residual, weight, eps)
    return with_recipe(y, partial(rms_norm, weight=weight, eps=eps), total), total


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return (layer_norm(total), total) for total = x + residual; see `add_rms_norm`."""
    y, total = _LayerNorm.apply(x, residual, weight, bias, eps)
    return with_recipe(y, partial(layer_norm, weight=weight, bias=bias, eps=eps), total), total
