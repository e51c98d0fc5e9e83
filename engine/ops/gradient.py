"""Where gradients go. That of a weight: summed into its main gradient, in that one's precision.

A weight held by gradient buckets has `main_grad` (fp32, or fp64 for fp64 runs) and `grad_ready()`. Ops add to it
themselves, because autograd would round every micro-batch's gradient to the weight's own dtype first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x, whose gradient is multiplied by `factor`: factor * x + (1 - factor) * x.detach(), without rounding."""
    return x if factor == 1.0 else _ScaleGradient.apply(x, factor)


class _AsInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return deliver(ctx.weight, grads[0])


def as_input(weight: Tensor) -> Tensor:
    """Return a weight as a tensor for plain operations, whose gradients are summed and then delivered to it."""
    return _AsInput.apply(weight)


def deliver(weight: Tensor, grad: Tensor) -> Tensor | None:
    """Add `grad` (the weight's shape, any dtype) to `weight.main_grad`; without one return it for autograd."""
    main_grad = getattr(weight, "main_grad", None)
    if main_grad is None:
        return grad.to(weight.dtype)
    main_grad.add_(grad)
    weight.grad_ready()  # type: ignore[attr-defined]
    return None
