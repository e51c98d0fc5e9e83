"""How much of a gradient enters an update: a fixed limit on the global norm, and limits learnt from the run itself.

A mode maps norms, the same on every rank, to factors: one for all, or one per tensor. What it remembers is a small
vector on the device, equal on every rank and in every layout. A step that is not applied teaches it nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.config import OptimConfig


class GlobalClip:
    """The global norm is at most `clip`."""

    per_tensor = False
    memory, warmup = 0.0, 0  # of the modes that learn: as published

    def __init__(self, config: OptimConfig, tensors: Sequence[str], device: torch.device) -> None:
        """`tensors` are the global names whose norms `factor` is given when the mode is `per_tensor`."""
        self.config = config
        if config.clip_memory is not None:
            self.memory = config.clip_memory
        if config.clip_warmup is not None:
            self.warmup = config.clip_warmup
        self.labels = self._labels(tensors)
        self.state = torch.zeros(len(self.labels), dtype=torch.float64, device=device)
        self._next = self.state

    def _labels(self, tensors: Sequence[str]) -> list[str]:
        return []

    def factor(self, norm: Tensor, norms_t: Tensor, clip: float) -> Tensor:
        """Return what the gradient is multiplied by: 0-dim, or one number per tensor where `per_tensor`.

        `norm` is the global one (0-dim float64), `norms_t` those of the tensors. `clip` is the largest global norm
        that may enter an update, 0 for no such limit.
        """
        return _bounded(norm, clip)

    def accept(self, keep: Tensor) -> None:
        """Learn from the norms of the last `factor`, if `keep` (0-dim) is not 0."""
        if self.labels:
            self.state.copy_(torch.where(keep > 0, self._next, self.state))

    def to_plain(self) -> dict[str, Any]:
        """Return what is remembered, as JSON values; waits for the device."""
        return {"mode": self.config.clip_mode, "state": dict(zip(self.labels, self.state.tolist(), strict=True))}

    def load(self, plain: dict[str, Any] | None) -> None:
        """Go on from what `to_plain` returned; start afresh when it was another mode, or nothing."""
        known = plain["state"] if plain is not None and plain["mode"] == self.config.clip_mode else {}
        values = [known.get(label, 0.0) for label in self.labels]
        self.state.copy_(torch.tensor(values, dtype=torch.float64))


class ZClip(GlobalClip):
    """Clips a global norm that is far above its usual level (arXiv 2504.02507).

    Mean and variance are exponential averages; a norm z > `clip_z` deviations above the mean is clipped to
    mean + deviation * clip_z^2 / z, the harder the further it is out, and enters the averages so.
    """

    memory, warmup = 0.97, 25

    def _labels(self, tensors: Sequence[str]) -> list[str]:
        return ["count", "mean", "variance"]

    def factor(self, norm: Tensor, norms_t: Tensor, clip: float) -> Tensor:
        count, mean, variance = self.state.unbind()
        deviation, learns = variance.sqrt(), count < self.warmup
        z = (norm - mean) / deviation  # of a deviation of 0: infinite, or not a number, which is above nothing
        is_outlier = (z > self.config.clip_z) & ~learns
        limit = mean + deviation * (self.config.clip_z**2 / z)
        usual = torch.where(is_outlier, limit, norm)
        share = torch.where(learns, 1.0 / (count + 1.0), 1.0 - self.memory)
        new_mean = mean + share * (usual - mean)
        # While learning every norm has one weight: the variance is that of all, by Welford's recurrence.
        square = torch.where(learns, (usual - mean) * (usual - new_mean), (usual - new_mean).square())
        self._next = torch.stack([count + 1.0, new_mean, variance + share * (square - variance)])
        adaptive = torch.where(is_outlier, limit / norm, torch.ones_like(norm))
        return torch.minimum(adaptive, _bounded(norm, clip))


class AdaGC(GlobalClip):
    """Clips the norm of each tensor's gradient to a multiple of its own usual norm (arXiv 2502.11034).

    Usual is an exponential average of clipped norms; while learning, their minimum. Unlike there, `clip` stays a
    limit on the global norm of what is left. A tensor is not clipped before it has had a gradient.
    """

    per_tensor = True
    memory, warmup = 0.98, 100

    def _labels(self, tensors: Sequence[str]) -> list[str]:
        return ["count", *tensors]

    def factor(self, norm: Tensor, norms_t: Tensor, clip: float) -> Tensor:
        count, usual_t = self.state[0], self.state[1:]
        learns, known_t = count < self.warmup, usual_t > 0
        limit_t = torch.where(known_t & ~learns, self.config.clip_relative * usual_t, torch.inf)
        factor_t = (limit_t / norms_t).clamp(max=1.0)
        factor_t = factor_t * _bounded((factor_t * norms_t).square().sum().sqrt(), clip)
        clipped_t = factor_t * norms_t
        learnt_t = torch.where(learns, torch.minimum(usual_t, clipped_t), torch.lerp(clipped_t, usual_t, self.memory))
        learnt_t = torch.where(known_t, torch.where(clipped_t > 0, learnt_t, usual_t), clipped_t)
        self._next = torch.cat([(count + 1.0)[None], learnt_t])
        return factor_t


CLIP_MODES: dict[str, type[GlobalClip]] = {"global": GlobalClip, "zclip": ZClip, "adagc": AdaGC}


def _bounded(norm: Tensor, clip: float) -> Tensor:
    """Return the factor that brings `norm` down to `clip` (0: no limit), as torch's clip_grad_norm_ does."""
    return (clip / (norm + 1e-6)).clamp(max=1.0) if clip > 0 else torch.ones_like(norm)
