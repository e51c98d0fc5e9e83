"""An update looked at before it is made: damped where it is larger than its gradients usually are, or not made at all.

It costs a pass over the optimizer state and a second reduction, so it happens only when asked for.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from engine.ops.adamw import next_values, sum_of_squares

_CPU_BLOCK = 2**15  # elements, whose temporaries stay in a core's cache


class Rule(NamedTuple):
    """How all tensors are updated in one step."""

    lr: float
    beta1: float
    beta2: float
    eps: float


def measure(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rule: Rule,
    *,
    weight_decay: float,
    step: Tensor,
    grad_scale: Tensor,
) -> Tensor:
    """Return three sums over flat tensors for update number `step`, float64 [3].

    They are of the squared gradient over what Adam expects of it (StableAdamW, arXiv 2304.13013, algorithm 2), of the
    squared change of the parameter, and of its squared value.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=param.device)
    size = _CPU_BLOCK if param.is_cpu else max(1, param.numel())
    for p, g, m, v in zip(*(x.split(size) for x in (param, grad, exp_avg, exp_avg_sq)), strict=True):
        scaled = g * grad_scale
        updated, _, _, expected = next_values(p, scaled, m, v, **rule._asdict(), weight_decay=weight_decay, step=step)
        expected_size = expected.sqrt_().clamp_(min=max(rule.eps, torch.finfo(expected.dtype).tiny))
        terms = (scaled / expected_size, updated - p, p)
        sums += torch.stack([sum_of_squares(x) for x in terms])
    return sums


def verdict(sums_tk: Tensor, sizes_t: Tensor, clip: float, most: float) -> tuple[Tensor, Tensor]:
    """Return a factor for the update of each tensor, float64 [t], and whether the whole is small enough, 0 or 1.

    `sums_tk` are `measure`d over whole tensors of `sizes_t` elements. With `clip` a tensor whose gradient has an RMS
    of more than `clip` times what Adam expects is updated as with an lr that much smaller. With `most` the norm of
    all changes may be no more than `most` times that of all parameters. 0 turns either off.
    """
    damping_t = torch.ones_like(sizes_t)
    if clip > 0:
        damping_t = (clip / (sums_tk[:, 0] / sizes_t).sqrt()).clamp(max=1.0)
    is_small = torch.ones_like(sizes_t[0])
    if most > 0:
        change = (damping_t.square() * sums_tk[:, 1]).sum()
        is_small = (change <= most**2 * sums_tk[:, 2].sum()).to(sizes_t.dtype)
    return damping_t, is_small
