"""A plain AdamW with every prevention of spikes that `tests.oracle.train` does not have, from the papers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.config import OptimConfig
from tests.oracle import PlainModel


def train(model: PlainModel, batches: list[dict[str, Tensor]], o: OptimConfig) -> tuple[list[float], list[float]]:
    """Run one update per batch with AdaGC clipping; return losses and gradient norms before clipping."""
    weights = model.weights
    first = {name: torch.zeros_like(w) for name, w in weights.items()}
    second = {name: torch.zeros_like(w) for name, w in weights.items()}
    usual: dict[str, float] = {}
    made, losses, norms = 0, [], []
    for step, batch in enumerate(batches):
        loss = model.loss(**batch, step=step)
        raw = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        losses.append(loss.item())
        norms.append(_norm(raw.values()))
        grads, learnt = _adagc(raw, usual, made, o)
        beta2 = 1 - (step + 1) ** -0.8 if o.beta2_schedule == "palm" else o.beta2
        fix1, fix2 = (1, 1) if o.beta2_schedule == "palm" else (1 - o.beta1 ** (made + 1), 1 - beta2 ** (made + 1))
        moments, changes = {}, {}
        for name, grad in grads.items():
            m = o.beta1 * first[name] + (1 - o.beta1) * grad
            v = beta2 * second[name] + (1 - beta2) * grad**2
            rms = (grad**2 / (v / fix2).clamp(min=o.eps**2)).mean().sqrt().item()
            lr = o.lr * (min(1, o.update_clip / rms) if o.update_clip else 1)
            decay = o.weight_decay if weights[name].ndim > 1 else 0
            changes[name] = -lr * (m / fix1 / ((v / fix2).sqrt() + o.eps) + decay * weights[name].detach())
            moments[name] = (m, v)
        ratio = _norm(changes.values()) / _norm(weights.values())
        if o.max_update_ratio and ratio > o.max_update_ratio:
            continue
        made, usual = made + 1, learnt
        with torch.no_grad():
            for name, change in changes.items():
                weights[name] += change
                first[name], second[name] = moments[name]
    return losses, norms


def _adagc(
    raw: dict[str, Tensor], usual: dict[str, float], made: int, o: OptimConfig
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return clipped gradients, and what will be usual if they are used."""
    assert o.clip_warmup is not None
    learns = made < o.clip_warmup
    grads = dict(raw)
    if not learns:
        grads = {name: g * min(1.0, o.clip_relative * usual[name] / g.norm().item()) for name, g in raw.items()}
    total = _norm(grads.values())
    grads = {name: g * min(1.0, o.clip / (total + 1e-6)) for name, g in grads.items()}
    sizes = {name: g.norm().item() for name, g in grads.items()}
    if learns:
        return grads, {name: min(usual.get(name, math.inf), size) for name, size in sizes.items()}
    return grads, {name: 0.98 * usual[name] + 0.02 * size for name, size in sizes.items()}


def _norm(tensors: object) -> float:
    return torch.stack([t.detach().norm() for t in tensors]).norm().item()  # type: ignore[attr-defined]
