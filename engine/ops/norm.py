"""RMSNorm and LayerNorm over the last dimension. Saved for backward: the input and one number a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.ops import backend


def _wide(x: Tensor) -> Tensor:
    """Statistics are taken in float32 at least."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if backend.fused(x):
            y, rstd = torch.ops.trimaran.rms_norm(x.contiguous(), weight, eps)
        else:
            wide = _wide(x)
            rstd = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
            y = (wide * rstd * weight).to(x.dtype)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, rstd = ctx.saved_tensors
        if backend.fused(x):
            dx, dw = torch.ops.trimaran.rms_norm_backward(grads[0].contiguous(), x.contiguous(), weight, rstd)
            return dx, dw, None
        dy, wide = _wide(grads[0]), _wide(x)
        normed = wide * rstd
        dnormed = dy * weight
        dx = rstd * (dnormed - normed * (dnormed * normed).mean(-1, keepdim=True))
        dw = (dy * normed).flatten(0, -2).sum(0)
        return dx.to(x.dtype), dw.to(weight.dtype), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight for x [..., h] (arXiv 1910.07467)."""
    return _RMSNorm.apply(x, weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) * weight + bias for x [..., h] (arXiv 1607.06450)."""
    return torch.nn.functional.layer_norm(x, (x.shape[-1],), weight, bias, eps)
