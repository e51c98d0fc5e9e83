"""The normal level of one signal, from the values that were accepted: a median, a spread, and bounds above them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

_TO_SIGMA = 1.4826  # a normal distribution's standard deviation over its median absolute deviation


class Baseline:
    """The last `window` accepted values, and what would be too high for the next one once `warm` are known.

    Curves fall, steeply at first. The medians of the window's older and newer half give a line; the spread is the
    median absolute deviation from that line, not the fall across the window. The level is the newer half's median,
    or the line's next value where that is higher (a gradient norm that grows slowly all the time).
    """

    def __init__(self, window: int, warm: int, excess: float) -> None:
        self.warm, self.excess = warm, excess
        self.values: deque[float] = deque(maxlen=window)
        self._known: tuple[float, float] | None = None

    def level_and_sigma(self) -> tuple[float, float]:
        """Return the level expected next and its robust standard deviation: (inf, 0) before it is warm."""
        if self._known is None:
            self._known = self._measure() if len(self.values) >= self.warm else (math.inf, 0.0)
        return self._known

    def level(self) -> float:
        """Return the value expected next: inf before it is warm."""
        return self.level_and_sigma()[0]

    def width(self, z: float) -> float:
        """Return how far above the level a value of `z` deviations is; at least the least excess."""
        return max(z * self.level_and_sigma()[1], self.excess)

    def limit(self, z: float) -> float:
        """Return the largest value that is still within `z` deviations of the level."""
        return self.level() + self.width(z)

    def accept(self, value: float) -> None:
        """Add a value that was found normal."""
        self.values.append(value)
        self._known = None

    def replace(self, values: Iterable[float]) -> None:
        """Forget the values known, for these."""
        self.values.clear()
        self.values.extend(values)
        self._known = None

    def widen(self, value: float, z: float) -> None:
        """Take values around `value` for normal from now on: the least excess grows to hold them."""
        self.excess = max(self.excess, value - self.level() + self.width(z))

    def move(self, values: list[float]) -> None:
        """Take `values` for the new level: what is known moves there, so that the spread stays known."""
        shift = median(values) - self.level()
        self.replace([*(value + shift for value in self.values), *values])

    def _measure(self) -> tuple[float, float]:
        values = list(self.values)
        count = len(values)
        half = count // 2
        newer = median(values[half:])
        slope = (newer - median(values[:half])) / (count / 2)
        middle = (half + count - 1) / 2  # of the newer half: there the line has its median
        off = [value - slope * (place - middle) for place, value in enumerate(values)]
        centre = median(off)
        sigma = _TO_SIGMA * median([abs(value - centre) for value in off])
        return newer + max(0.0, slope * (count - middle)), sigma
