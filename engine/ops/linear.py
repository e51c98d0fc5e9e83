"""The three products of a linear layer, and accumulation of weight gradients straight into the main gradient.

On CPUs, 16-bit operands are widened to float32 for the product and the result is rounded once: torch's own path
without 16-bit units is some 50 times slower. Weights held by gradient buckets are widened once a step
(`weight.widened`, see `engine.parallel.buckets`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.ops import backend
from engine.ops.gradient import deliver
from engine.ops.libraries import apex

_HALF = (torch.bfloat16, torch.float16)


def widen(x: Tensor) -> Tensor:
    """Return x as it enters products: float32 for 16-bit tensors on CPUs."""
    return x.float() if x.is_cpu and x.dtype in _HALF else x


def _wide_weight(weight: Tensor) -> Tensor:
    widened = getattr(weight, "widened", None)
    return widen(weight) if widened is None else widened


def matmul(x: Tensor, weight_oi: Tensor, bias_o: Tensor | None) -> Tensor:
    """Return x W^T + bias: [..., i] -> [..., o]."""
    wide = _wide_weight(weight_oi)
    if bias_o is None:
        return F.linear(widen(x), wide).to(x.dtype)
    y_no = torch.addmm(widen(bias_o), widen(x).reshape(-1, x.shape[-1]), wide.t())
    # Not a view, so that a custom Function may return it and its consumer may overwrite it.
    return torch.ops.aten._unsafe_view(y_no, (*x.shape[:-1], y_no.shape[1])).to(x.dtype)


def grad_input(dy: Tensor, weight_oi: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return dy W in `dtype` (None: dy's): [..., o] -> [..., i]."""
    return torch.matmul(widen(dy), _wide_weight(weight_oi)).to(dtype or dy.dtype)


def accumulate_weight_grad(weight: Tensor, dy: Tensor, x: Tensor) -> Tensor | None:
    """Add dy^T x to `weight.main_grad` and report it ready; without a main gradient return the gradient instead."""
    dy_no, x_ni = widen(dy).reshape(-1, dy.shape[-1]), widen(x).reshape(-1, x.shape[-1])
    main_grad = getattr(weight, "main_grad", None)
    if main_grad is None:
        return (dy_no.t() @ x_ni).to(weight.dtype)
    add_weight_grad_(main_grad, dy_no, x_ni)
    weight.grad_ready()  # type: ignore[attr-defined]
    return None


def add_weight_grad_(total_oi: Tensor, dy_no: Tensor, x_ni: Tensor) -> None:
    """Add dy^T x to `total_oi`, which is float32 or wider; the operands have been widened where they need to be."""
    if backend.choose("weight_grad", x_ni) == "apex":
        apex.add_weight_grad_(total_oi, dy_no, x_ni)
    elif total_oi.dtype == dy_no.dtype:
        total_oi.addmm_(dy_no.t(), x_ni)
    else:  # 16-bit operands on a GPU: their products are summed in float32 anyway, and stay so
        total_oi.add_(torch.mm(dy_no.t(), x_ni, out_dtype=total_oi.dtype))


def accumulate_bias_grad(bias: Tensor, dy: Tensor) -> Tensor | None:
    """Add the sum of dy over all rows to `bias.main_grad`; without a main gradient return the sum instead."""
    dy_no = dy.reshape(-1, dy.shape[-1])
    return deliver(bias, dy_no.sum(0, dtype=torch.promote_types(dy.dtype, torch.float32)))
