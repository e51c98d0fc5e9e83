"""Weighted blends with exact proportions at every prefix, decided for each sample index alone.

Weights become whole numbers over one period; a table says which source each place of the period takes, always the
one that is furthest behind its share. After any k samples a source has had its share of k within one sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.errors import ConfigError

PERIOD = 10_000  # resolution of weights: one in ten thousand


class Blend:
    """Maps the k-th sample of the blend to (source, its running number in that source)."""

    def __init__(self, weights: Sequence[float]) -> None:
        if not weights or min(weights) <= 0:
            raise ConfigError(f"data.paths weights must be positive, not {list(weights)}.")
        self.counts = _quantise(weights, 1 if len(weights) == 1 else PERIOD)
        period = int(sum(self.counts))
        self._source = np.zeros(period, dtype=np.int16)
        self._number = np.zeros(period, dtype=np.int64)
        given = np.zeros(len(self.counts), dtype=np.int64)
        rates = np.asarray(self.counts) / period
        for place in range(period):
            behind = rates * (place + 1) - given
            behind[given >= self.counts] = -np.inf
            source = int(behind.argmax())
            self._source[place], self._number[place] = source, given[source]
            given[source] += 1

    def __call__(self, index: int) -> tuple[int, int]:
        cycle, place = divmod(index, len(self._source))
        source = int(self._source[place])
        return source, cycle * self.counts[source] + int(self._number[place])


def _quantise(weights: Sequence[float], period: int) -> list[int]:
    """Return whole numbers of sum `period` nearest to the weights' shares, each at least 1 (largest remainders)."""
    total = sum(weights)
    exact = [weight / total * period for weight in weights]
    counts = [max(1, int(value)) for value in exact]
    order = sorted(range(len(weights)), key=lambda i: exact[i] - int(exact[i]), reverse=True)
    for turn in range(period - sum(counts)):
        counts[order[turn % len(order)]] += 1
    while sum(counts) > period:
        counts[counts.index(max(counts))] -= 1
    return counts
