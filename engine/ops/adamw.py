"""AdamW on flat tensors (arXiv 1711.05101), with clipping and the decision to skip folded into one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.ops import backend
from engine.ops.libraries import apex


def adamw_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: Tensor,
    grad_scale: Tensor,
    keep: Tensor,
    rounded: Tensor | None = None,
) -> None:
    """Update `param` and its moments in place with `grad_scale` * `grad`, as torch.optim.AdamW does.

    All flat tensors share one shape and dtype (float32 or float64); the gradient may be overwritten. `step` (the
    number of this update, from 1), `grad_scale` and `keep` are 0-dim tensors, read without a host synchronisation on
    GPUs; keep = 0 leaves everything bitwise as it was, whatever the gradient holds. `rounded`, bfloat16 or float16 of
    the same shape, receives the updated parameter.
    """
    runs_on = backend.choose("adamw", param)
    if runs_on == "apex":
        apex.adamw_(
            param, grad, exp_avg, exp_avg_sq, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
            step=step, grad_scale=grad_scale, keep=keep,
        )  # fmt: skip
        if rounded is not None:
            rounded.copy_(torch.where(keep > 0, param.to(rounded.dtype), rounded))
        return
    if runs_on == "native":
        torch.ops.trimaran.adamw_(
            param, grad, exp_avg, exp_avg_sq, rounded, lr, beta1, beta2, eps, weight_decay, step, grad_scale, keep
        )
        return
    applied = keep > 0
    scaled = torch.where(applied, grad * grad_scale, 0.0)
    updated, first, second, _ = next_values(
        param, scaled, exp_avg, exp_avg_sq, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
        step=step,
    )  # fmt: skip
    for old, new in ((param, updated), (exp_avg, first), (exp_avg_sq, second)):
        old.copy_(torch.where(applied, new, old))
    if rounded is not None:
        rounded.copy_(torch.where(applied, param.to(rounded.dtype), rounded))


def next_values(
    param: Tensor,
    scaled: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return parameter and moments after update number `step` with the gradient `scaled`, and what Adam expects of
    that gradient's square: the second moment without the bias of its start at 0. Nothing is changed."""
    first = torch.lerp(exp_avg, scaled, 1.0 - beta1)
    second = exp_avg_sq * beta2 + scaled * scaled * (1.0 - beta2)
    number = step.double()  # 1 - beta2^step loses most digits of float32 in the first steps
    expected = second / (1.0 - beta2**number)
    updated = param * (1.0 - lr * weight_decay) - lr * (first / (1.0 - beta1**number)) / (expected.sqrt() + eps)
    return updated, first, second, expected


def sum_of_squares(flat: Tensor) -> Tensor:
    """Return the sum of squares of a flat tensor as a 0-dim float64."""
    runs_on = backend.choose("adamw", flat)
    if runs_on == "apex":
        return apex.sum_of_squares(flat)
    if runs_on == "native":
        return torch.ops.trimaran.sum_of_squares(flat)
    return flat.double().square().sum()
