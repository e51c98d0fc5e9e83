"""RMSNorm and LayerNorm over the last dimension. Saved for backward: the input and one number a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.ops import backend
from engine.ops.gradient import deliver


def _wide(x: Tensor) -> Tensor:
    """Statistics are taken in float32 at least."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _wide_or_none(x: Tensor | None) -> Tensor | None:
    return None if x is None else _wide(x)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if backend.native("rms_norm", x):
            y, rstd = torch.ops.trimaran.rms_norm(x.contiguous(), weight, eps)
        else:
            wide = _wide(x)
            rstd = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
            y = (wide * rstd * weight).to(x.dtype)
        ctx.save_for_backward(x, rstd)
        ctx.weight = weight
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x, rstd), weight = ctx.saved_tensors, ctx.weight
        if backend.native("rms_norm", x):
            dx, dw = torch.ops.trimaran.rms_norm_backward(grads[0].contiguous(), x.contiguous(), weight, rstd)
            return dx, deliver(weight, dw), None
        dy, wide = _wide(grads[0]), _wide(x)
        normed = wide * rstd
        dnormed = dy * weight
        dx = rstd * (dnormed - normed * (dnormed * normed).mean(-1, keepdim=True))
        dw = (dy * normed).flatten(0, -2).sum(0)
        return dx.to(x.dtype), deliver(weight, dw), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight for x [..., h] (arXiv 1910.07467)."""
    return _RMSNorm.apply(x, weight, eps)


class _LayerNorm(torch.autograd.Function):
    """torch's own kernels, on float32 at least: for 16-bit tensors they would round statistics and sums to 16 bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(_wide(x), x.shape[-1:], _wide(weight), _wide_or_none(bias), eps)
        ctx.save_for_backward(x, mean, rstd)
        ctx.weight, ctx.bias = weight, bias
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x, mean, rstd), weight, bias = ctx.saved_tensors, ctx.weight, ctx.bias
        dx, dw, db = torch.ops.aten.native_layer_norm_backward(
            _wide(grads[0]), _wide(x), x.shape[-1:], mean, rstd, _wide(weight), _wide_or_none(bias),
            [True, True, bias is not None],
        )  # fmt: skip
        return dx.to(x.dtype), deliver(weight, dw), None if bias is None else deliver(bias, db), None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) * weight + bias for x [..., h] (arXiv 1607.06450)."""
    return _LayerNorm.apply(x, weight, bias, eps)
