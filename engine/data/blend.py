"""Weighted blends with exact proportions at every prefix, decided for each sample index alone.

Weights become whole numbers over one period, and a table says which source each place of the period takes. After
any k samples a source has had its share of k to within one sample: each of a source's places has a first and a last
moment that keep it so, and the earliest last moment goes first (R. Tijdeman, "The chairman assignment problem",
Discrete Mathematics 32, 1980).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from engine.errors import ConfigError

_PERIODS = (1_000, 10_000, 100_000, 1_000_000)  # the largest takes seconds to lay out
_ACCURACY = 0.01  # of a share that no short period keeps exactly
_EXACT = 1e-9  # what a weight's own rounding may leave: 0.3 and 0.7, or a third written with all its digits


class Blend:
    """Maps the k-th sample of the blend to (source, its running number in that source)."""

    def __init__(self, weights: Sequence[float]) -> None:
        if not weights or not all(0 < weight < math.inf for weight in weights):
            raise ConfigError(f"data.paths weights must be positive, not {list(weights)}.")
        self.counts = _counts(weights)
        self._source, self._number = _order(self.counts)

    def __call__(self, index: int) -> tuple[int, int]:
        cycle, place = divmod(index, len(self._source))
        source = int(self._source[place])
        return source, cycle * self.counts[source] + int(self._number[place])


def _counts(weights: Sequence[float]) -> list[int]:
    """Return each source's places in a period that keeps every share: exactly if one does, else to `_ACCURACY`."""
    counts = _ratio(weights)
    if sum(counts) <= _PERIODS[-1] and _error(counts, weights) <= _EXACT:
        return counts
    for period in _PERIODS:
        counts = _quantise(weights, period)
        if _error(counts, weights) <= _ACCURACY:
            return counts
    total, least = sum(weights), min(weights)
    raise ConfigError(
        f"data.paths: the weight {least:g} is {least / total:.2g} of the blend, too little to be kept to; leave that "
        f"source out or give it {total * 100 / _PERIODS[-1]:.2g} or more."
    )


def _ratio(weights: Sequence[float]) -> list[int]:
    """Return whole numbers, without a common divisor, in the ratio of the weights or near it."""
    if all(float(weight).is_integer() for weight in weights):
        wholes = [int(weight) for weight in weights]
    else:
        total = sum(weights)
        shares = [Fraction(weight / total).limit_denominator(_PERIODS[1]) for weight in weights]
        common = math.lcm(*(share.denominator for share in shares))
        wholes = [int(share * common) for share in shares]
    divisor = math.gcd(*wholes) or 1
    return [whole // divisor for whole in wholes]


def _error(counts: Sequence[int], weights: Sequence[float]) -> float:
    """Return by how much, of itself, the share that is furthest off differs from its weight's."""
    total, period = sum(weights), sum(counts)
    return max(abs(count * total / (weight * period) - 1) for count, weight in zip(counts, weights, strict=True))


def _quantise(weights: Sequence[float], period: int) -> list[int]:
    """Return whole numbers of sum `period` nearest to the weights' shares (largest remainders)."""
    total = sum(weights)
    exact = [weight / total * period for weight in weights]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: counts[i] - exact[i])
    for source in by_remainder[: period - sum(counts)]:
        counts[source] += 1
    return counts


def _order(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return for each place of the period its source (int32) and which of that source's places it is (int64)."""
    period, slack = sum(counts), max(1, 2 * len(counts) - 2)
    sources, numbers = np.empty(period, dtype=np.int32), np.empty(period, dtype=np.int64)

    def first(source: int, number: int) -> int:  # before it the source would be 1 - 1/slack samples ahead
        return -(-period * (slack * number + 1) // (counts[source] * slack))

    def last(source: int, number: int) -> int:  # after it the source would be 1 - 1/slack samples behind
        return period * (slack * (number + 1) - 1) // (counts[source] * slack)

    waiting = [(first(source, 0), source, 0) for source in range(len(counts))]
    heapq.heapify(waiting)
    ready: list[tuple[int, int, int]] = []
    for place in range(period):
        while waiting and waiting[0][0] <= place + 1:
            _, source, number = heapq.heappop(waiting)
            heapq.heappush(ready, (last(source, number), source, number))
        _, source, number = heapq.heappop(ready)
        sources[place], numbers[place] = source, number
        if number + 1 < counts[source]:
            heapq.heappush(waiting, (first(source, number + 1), source, number + 1))
    return sources, numbers
