"""The data a run passes over, and the order of what it trains on: a pure function of (ranges, samples trained).

Positions are places in the run's sample order (`engine.data.samples`), absolute and for good. The n-th trained sample
has the position that a run with the same ranges from its first step would give it, as long as each range was added
ahead of everything trained until then: so a run that rolled back and a run that was told beforehand are the same run.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

Range = tuple[int, int]  # half-open: [first, stop)
_FOREVER = 1 << 62


def union(*parts: Iterable[Range]) -> tuple[Range, ...]:
    """Return the positions in any of `parts` as sorted ranges that do not touch."""
    joined: list[Range] = []
    for first, stop in sorted(piece for part in parts for piece in part if piece[0] < piece[1]):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((first, stop))
    return tuple(joined)


def without(ranges: Iterable[Range], holes: Iterable[Range]) -> tuple[Range, ...]:
    """Return what `holes` leave of `ranges`; either in any order."""
    left: list[Range] = []
    gaps = union(holes)
    for first, stop in union(ranges):
        for hole_first, hole_stop in gaps:
            if hole_stop <= first or hole_first >= stop:
                continue
            left.append((first, hole_first))
            first = hole_stop
        left.append((first, stop))
    return union(left)


def size(ranges: Iterable[Range]) -> int:
    """Return how many positions disjoint ranges hold."""
    return sum(stop - first for first, stop in ranges)


@dataclass(frozen=True)
class Skips:
    """Ranges passed over for good, and ranges put off to the end of the `planned` samples of the run.

    Trained are, in this order: the planned samples that are in neither, those put off, and, in place of the dropped
    ones or where the run is prolonged, what follows the planned ones. Positions put off from beyond the planned ones
    would have no end to come back at: they are dropped.
    """

    dropped: tuple[Range, ...] = ()
    deferred: tuple[Range, ...] = ()
    planned: int | None = None  # samples of the run as first planned; None while nothing was ever put off

    def position(self, number: int) -> int:
        """Return the position of trained sample `number`, in O(log ranges)."""
        starts, pieces = self._order
        place = bisect_right(starts, number) - 1
        return pieces[place][0] + number - starts[place]

    def ranges(self, first: int, stop: int) -> Iterator[Range]:
        """Yield the positions of trained samples first to stop - 1, in order, as ranges."""
        starts, pieces = self._order
        place = bisect_right(starts, first) - 1
        while first < stop:
            begin, end = pieces[place]
            begin += first - starts[place]
            end = min(end, begin + stop - first)
            yield begin, end
            first += end - begin
            place += 1

    def pass_over(self, first: int, stop: int, *, planned: int | None = None) -> Skips:
        """Return these skips and the data that trained samples first to stop - 1 would be.

        With `planned`, the samples of the whole planned run (what was said first counts), they are put off to its
        end; data that were put off before, or that follow the planned ones, are dropped. So is all without `planned`.
        """
        if planned is not None and self.planned is None:
            return Skips(self.dropped, self.deferred, planned).pass_over(first, stop, planned=planned)
        taken = union(self.ranges(first, stop))
        fresh = without(taken, [*self.deferred, (self._planned, _FOREVER)]) if planned is not None else ()
        return Skips(
            union(self.dropped, without(taken, fresh)), without(union(self.deferred, fresh), without(taken, fresh)),
            self.planned,
        )  # fmt: skip

    @property
    def _planned(self) -> int:
        return _FOREVER if self.planned is None else self.planned

    @cached_property
    def _order(self) -> tuple[list[int], list[Range]]:
        """The pieces of the sample order, none empty, and the number of trained samples before each."""
        out = [*self.dropped, *self.deferred]
        pieces = list(without([(0, self._planned)], out))
        if self.planned is not None:
            pieces += without(self.deferred, [*self.dropped, (self.planned, _FOREVER)])
            pieces += without([(self.planned, _FOREVER)], out)
        return [0, *accumulate(stop - first for first, stop in pieces[:-1])], pieces

    def to_plain(self) -> dict[str, Any]:
        """Return this as JSON values."""
        return {
            "dropped": [list(piece) for piece in self.dropped],
            "deferred": [list(piece) for piece in self.deferred],
            "planned": self.planned,
        }

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> Skips:
        """Return what `to_plain` was given."""
        dropped, deferred = (union((first, stop) for first, stop in plain[key]) for key in ("dropped", "deferred"))
        return Skips(dropped, deferred, plain["planned"])
