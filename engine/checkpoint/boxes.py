"""Axis-aligned boxes of integer coordinates: the one geometry checkpoints are cut and read by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """The points p with offsets[d] <= p[d] < offsets[d] + shape[d]; no dimensions at all is one point."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of points."""
        return math.prod(self.shape)

    def intersect(self, other: Box) -> Box | None:
        """Return the common part, or None where there is none."""
        low = tuple(max(a, b) for a, b in zip(self.offsets, other.offsets, strict=True))
        high = tuple(
            min(a + n, b + m) for a, n, b, m in zip(self.offsets, self.shape, other.offsets, other.shape, strict=True)
        )
        if any(a >= b for a, b in zip(low, high, strict=True)):
            return None
        return Box(low, tuple(b - a for a, b in zip(low, high, strict=True)))

    def slices_in(self, outer: Box) -> tuple[slice, ...]:
        """Return the index of this box inside a tensor that holds `outer`."""
        return tuple(slice(a - b, a - b + n) for a, n, b in zip(self.offsets, self.shape, outer.offsets, strict=True))


@dataclass(frozen=True)
class FlatBox:
    """A box in global coordinates whose points are consecutive in a whole's row-major order, from `flat_start`."""

    box: Box
    flat_start: int


def flat_range_boxes(box: Box, start: int, stop: int) -> list[FlatBox]:
    """Cut the row-major range [start, stop) of `box` into few boxes, in order of their place in the range.

    Whole rows in the middle make one box; a torn row at either end is cut the same way one dimension lower, so
    at most 2 * dimensions - 1 boxes come out.
    """
    if not 0 <= start <= stop <= box.numel:
        raise ValueError(f"flat range [{start}, {stop}) outside a box of {box.numel} elements")
    return _cut(box, start, stop, 0)


def _cut(box: Box, start: int, stop: int, base: int) -> list[FlatBox]:
    """Cut [start, stop) of `box`, whose own first element is number `base` of the whole."""
    if start == stop:
        return []
    if stop - start == box.numel:
        return [FlatBox(box, base)]
    rest = math.prod(box.shape[1:])
    first, last = -(-start // rest), stop // rest
    if first > last:  # inside one row
        return _cut_row(box, last, start, stop, base)
    head = _cut_row(box, first - 1, start, first * rest, base) if start < first * rest else []
    tail = _cut_row(box, last, last * rest, stop, base) if last * rest < stop else []
    middle = []
    if first < last:
        rows = Box((box.offsets[0] + first, *box.offsets[1:]), (last - first, *box.shape[1:]))
        middle = [FlatBox(rows, base + first * rest)]
    return head + middle + tail


def _cut_row(box: Box, row: int, start: int, stop: int, base: int) -> list[FlatBox]:
    """Cut [start, stop) of `box`, all of which lies in its row number `row`."""
    rest = math.prod(box.shape[1:])
    inner = Box(box.offsets[1:], box.shape[1:])
    parts = _cut(inner, start - row * rest, stop - row * rest, base + row * rest)
    at = box.offsets[0] + row
    return [FlatBox(Box((at, *p.box.offsets), (1, *p.box.shape)), p.flat_start) for p in parts]


def are_disjoint(boxes: Sequence[Box]) -> bool:
    """Return whether no two boxes share a point (fast where they are cut apart along one dimension)."""
    if len(boxes) < 2 or not boxes[0].offsets:
        return len(boxes) < 2
    along = max(range(len(boxes[0].offsets)), key=lambda d: len({box.offsets[d] for box in boxes}))
    ordered = sorted(boxes, key=lambda box: box.offsets[along])
    for number, box in enumerate(ordered):
        for place in range(number + 1, len(ordered)):  # a slice would copy all the rest
            other = ordered[place]
            if other.offsets[along] >= box.offsets[along] + box.shape[along]:
                break
            if box.intersect(other) is not None:
                return False
    return True
