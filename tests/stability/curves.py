"""Loss and gradient-norm curves: made up, recorded from the engine, and the shapes of trouble that are put on them.

`curves/*.jsonl` hold [loss, gradient norm] of each of the first 800 steps of small models (2 layers of 64) on the
built-in text: Llama-style and GPT-style; cosine, wsd, constant and inverse_sqrt schedules with and without warm-up;
batches of 4 to 64 samples of 64 tokens, in `ramp` growing from 4 to 16. None of them had any trouble.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RECORDED = sorted((Path(__file__).parent / "curves").glob("*.jsonl"))
Series = NDArray[np.float64]
SIGMA, NORM_SIGMA = 0.03, 0.1  # noise of a made-up loss, in nats, and of its gradient norm's logarithm


@dataclass(frozen=True)
class Curve:
    """Loss in nats and gradient norm of each step."""

    loss: Series
    norm: Series

    def __len__(self) -> int:
        return len(self.loss)

    def with_trouble(self, onset: int, trouble: Curve) -> Curve:
        """Return this curve with a trouble's loss added and its gradient norms multiplied in, from `onset` on."""
        loss, norm = self.loss.copy(), self.norm.copy()
        end = min(len(self), onset + len(trouble))
        loss[onset:end] += trouble.loss[: end - onset]
        norm[onset:end] *= trouble.norm[: end - onset]
        return Curve(loss, norm)


def recorded(path: Path) -> Curve:
    """Read a recorded curve."""
    rows = np.array([json.loads(line) for line in path.read_text().splitlines()])
    return Curve(rows[:, 0], rows[:, 1])


def _gauss(random: np.random.Generator, steps: int) -> Series:
    return random.standard_normal(steps)


def _heavy(random: np.random.Generator, steps: int) -> Series:
    return random.standard_t(3, steps)


def _right_tail(random: np.random.Generator, steps: int) -> Series:
    return random.standard_normal(steps) + (random.random(steps) < 0.005) * random.exponential(10, steps)


NOISE: dict[str, Callable[[np.random.Generator, int], Series]] = {
    "gauss": _gauss, "t3 tail": _heavy, "rare right tail": _right_tail, "level shift": _gauss,
}  # fmt: skip


def made_up(noise: str, steps: int, seed: int) -> Curve:
    """Return a loss that falls from 4 nats towards 2, under noise; with level shift, data change three times."""
    random = np.random.default_rng(seed)
    place = np.arange(steps)
    loss = 2.0 + 2.0 * np.exp(-place / 1000) + SIGMA * NOISE[noise](random, steps)
    norm = np.exp(np.log(0.3) + NORM_SIGMA * NOISE[noise](random, steps))
    if noise == "level shift":
        loss += 0.4 * (place >= steps // 4) - 0.3 * (place >= steps // 2) + 0.6 * (place >= 3 * steps // 4)
    return Curve(loss, norm)


def _tail(peak: float, steps: int, base: float) -> Series:
    return base + (peak - base) * np.exp(-np.arange(steps) / 10)


# Gradient norm and loss of BLOOM-176B over its iterations 31214 to 31222, and a decay after them. Its first alarming
# step is taken for the onset.
BLOOM = Curve(
    np.concatenate([[0.02, 0.42, 0.04, 0.15, 2.9], _tail(2.9, 25, 0.0)]),
    np.concatenate([[3.9, 9.9, 66.0, 600.0, 3970.0], _tail(100.0, 25, 1.0)]),
)
STEP = Curve(np.full(30, 0.3), np.ones(30))
RAMP = Curve(np.arange(2000) * 0.001, np.ones(2000))
SINGLE = Curve(np.array([1.0]), np.array([3.0]))


def _jump(random: np.random.Generator) -> Curve:
    """A rate too high, a flipped bit: loss and gradients jump, then fall back."""
    return Curve(_tail(random.uniform(1, 4), 30, 0.0), _tail(random.uniform(5, 50), 30, 1.0))


def _gradients_first(random: np.random.Generator) -> Curve:
    """The gradient norm grows at once, the loss two steps later."""
    return Curve(np.r_[0, 0, _tail(random.uniform(0.5, 3), 28, 0.0)], _tail(random.uniform(10, 100), 30, 1.0))


def _poison(random: np.random.Generator) -> Curve:
    """Text that is noise: as bad as not having learned anything, with little in the gradients."""
    return Curve(np.full(30, random.uniform(2.5, 3.5)), np.full(30, random.uniform(1.2, 2.0)))


ABRUPT: dict[str, Callable[[np.random.Generator], Curve]] = {
    "BLOOM's shape": lambda random: BLOOM, "jump": _jump, "gradients first": _gradients_first, "poison": _poison,
}  # fmt: skip
