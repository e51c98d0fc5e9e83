"""Boxes against NumPy-style indexing of a counted tensor."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.boxes import Box, are_disjoint, flat_range_boxes

SHAPES = st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[Box, int, int]:
    shape = draw(SHAPES)
    offsets = tuple(draw(st.integers(0, 7)) for _ in shape)
    box = Box(offsets, shape)
    start = draw(st.integers(0, box.numel))
    return box, start, draw(st.integers(start, box.numel))


@settings(max_examples=300, deadline=None)
@given(ranges())
def test_a_flat_range_is_cut_into_few_boxes_that_rebuild_it(case: tuple[Box, int, int]) -> None:
    box, start, stop = case
    counted = torch.arange(box.numel).view(box.shape)
    parts = flat_range_boxes(box, start, stop)
    values = [counted[p.box.slices_in(box)].flatten() for p in parts]
    got = torch.cat(values) if values else torch.empty(0, dtype=torch.int64)
    assert got.tolist() == list(range(start, stop))
    for part, held in zip(parts, values, strict=True):
        assert part.flat_start == held[0]
        assert part.box.numel == held.numel()
    assert len(parts) <= max(1, 2 * len(box.shape) - 1)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Box, Box]:
    rank = draw(st.integers(0, 3))
    side = st.tuples(*[st.integers(0, 5)] * rank), st.tuples(*[st.integers(1, 5)] * rank)
    return Box(draw(side[0]), draw(side[1])), Box(draw(side[0]), draw(side[1]))


@settings(max_examples=300, deadline=None)
@given(pairs())
def test_intersection_is_where_two_masks_are_both_set(case: tuple[Box, Box]) -> None:
    a, b = case
    space = Box((0,) * len(a.shape), (10,) * len(a.shape))

    def mask(box: Box) -> torch.Tensor:
        where = torch.zeros(space.shape, dtype=torch.bool)
        where[box.slices_in(space)] = True
        return where

    both, common = mask(a) & mask(b), a.intersect(b)
    assert common == b.intersect(a)
    if common is None:
        assert not both.any()
    else:
        assert torch.equal(mask(common), both)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 7)])
def test_a_range_outside_the_box_is_refused(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="outside a box"):
        flat_range_boxes(Box((0, 0), (2, 3)), start, stop)


@settings(max_examples=200, deadline=None)
@given(st.lists(pairs(), min_size=1, max_size=3))
def test_boxes_are_disjoint_where_no_two_share_a_point(cases: list[tuple[Box, Box]]) -> None:
    boxes = [box for case in cases for box in case if len(box.shape) == len(cases[0][0].shape)]
    shared = any(a.intersect(b) for number, a in enumerate(boxes) for b in boxes[:number])
    assert are_disjoint(boxes) == (not shared)
    assert are_disjoint([])
    assert not are_disjoint([Box((), ())] * 2)


@pytest.mark.parametrize("dimension", [0, 1])
def test_many_boxes_in_a_row_are_compared_with_their_neighbours_only(dimension: int) -> None:
    """A manifest of a few megabytes must not take hours to refuse."""
    count = 20_000
    boxes = [Box((number, 0)[:: 1 - 2 * dimension], (1, 1)) for number in range(count)]
    begin = time.process_time()
    assert are_disjoint(boxes)
    assert not are_disjoint([*boxes, boxes[7]])
    assert time.process_time() - begin < 5
