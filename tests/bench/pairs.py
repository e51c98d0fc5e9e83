"""Interleaved timing (A B A B ...) and the ratio of each pair.

The ratio is theirs / ours: above 1, Trimaran is faster. Neighbours in time share the machine's mood, so the median
of paired ratios says more than the ratio of two medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """How long to measure: unmeasured `warmup` runs of each side, then `pairs` samples of `steps` runs each."""

    warmup: int
    pairs: int
    steps: int


@dataclass(frozen=True)
class Pairs:
    """Seconds per run of both sides, one entry per pair."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[tuple[float, float]]) -> Pairs:
        """Make pairs of (ours, theirs) samples."""
        return cls(tuple(ours for ours, _ in samples), tuple(theirs for _, theirs in samples))

    @property
    def ratios(self) -> list[float]:
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def ours_s(self) -> float:
        return statistics.median(self.ours)

    @property
    def theirs_s(self) -> float:
        return statistics.median(self.theirs)


def measure(
    ours: Callable[[], object], theirs: Callable[[], object], plan: Plan, barrier: Callable[[], object]
) -> Pairs:
    """Time both sides alternately; `barrier` makes all ranks begin together and wait for the slowest."""

    def sample(run: Callable[[], object], steps: int) -> float:
        barrier()
        begin = time.perf_counter()
        for _ in range(steps):
            run()
        barrier()
        return (time.perf_counter() - begin) / steps

    for _ in range(plan.warmup):
        ours(), theirs()
    samples = [(sample(ours, plan.steps), sample(theirs, plan.steps)) for _ in range(plan.pairs)]
    return Pairs.of(samples)


def seconds_of(run: Callable[[], object]) -> float:
    """Return how long one run takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
