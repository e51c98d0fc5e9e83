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


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.is_cpu and x.dtype in _HALF else x


def _wide_weight(weight: Tensor) -> Tensor:
    widened = getattr(weight, "widened", None)
    return _wide(weight) if widened is None else widened


def matmul(x: Tensor, weight_oi: Tensor, bias_o: Tensor | None) -> Tensor:
    """Return x W^T + bias: [..., i] -> [..., o]."""
    wide = _wide_weight(weight_oi)
    if bias_o is None:
        return F.linear(_wide(x), wide).to(x.dtype)
    y_no = torch.addmm(_wide(bias_o), _wide(x).reshape(-1, x.shape[-1]), wide.t())
    # Not a view, so that a custom Function may return it and its consumer may overwrite it.
    return torch.ops.aten._unsafe_view(y_no, (*x.shape[:-1], y_no.shape[1])).to(x.dtype)


def grad_input(dy: Tensor, weight_oi: Tensor) -> Tensor:
    """Return dy W: [..., o] -> [..., i]."""
    return torch.matmul(_wide(dy), _wide_weight(weight_oi)).to(dy.dtype)


def accumulate_weight_grad(weight: Tensor, dy: Tensor, x: Tensor) -> Tensor | None:
    """Add dy^T x to `weight.main_grad` and report it ready; without a main gradient return the gradient instead."""
    dy_no, x_ni = _wide(dy).reshape(-1, dy.shape[-1]), _wide(x).reshape(-1, x.shape[-1])
    main_grad = getattr(weight, "main_grad", None)
    if main_grad is None:
        return (dy_no.t() @ x_ni).to(weight.dtype)
    if backend.choose("weight_grad", x_ni) == "apex":
        apex.add_weight_grad_(main_grad, dy_no, x_ni)
    elif main_grad.dtype == dy_no.dtype:
        main_grad.addmm_(dy_no.t(), x_ni)
    else:  # 16-bit operands on a GPU: their products are summed in float32 anyway, and stay so
        main_grad.add_(torch.mm(dy_no.t(), x_ni, out_dtype=main_grad.dtype))
    weight.grad_ready()  # type: ignore[attr-defined]
    return None


def accumulate_bias_grad(bias: Tensor, dy: Tensor) -> Tensor | None:
    """Add the sum of dy over all rows to `bias.main_grad`; without a main gradient return the sum instead."""
    dy_no = dy.reshape(-1, dy.shape[-1])
    return deliver(bias, dy_no.sum(0, dtype=torch.promote_types(dy.dtype, torch.float32)))
