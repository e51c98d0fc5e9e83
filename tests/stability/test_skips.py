"""Data passed over, against a brute-force oracle that keeps the whole order as a list."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.stability.skips import Range, Skips, size, union, without

PLANNED = 60
SHOWN = 150  # samples of each order that are compared
spans = st.tuples(st.integers(0, 90), st.integers(0, 25)).map(lambda pair: (pair[0], pair[0] + pair[1]))
range_lists = st.lists(spans, max_size=6)


def members(ranges: list[Range] | tuple[Range, ...]) -> set[int]:
    return {position for first, stop in ranges for position in range(first, stop)}


class Oracle:
    """Every position of a run of `planned` samples, and sets of those left out."""

    def __init__(self, planned: int | None) -> None:
        self.planned = planned
        self.dropped: set[int] = set()
        self.deferred: set[int] = set()

    def order(self) -> list[int]:
        end = 400 if self.planned is None else self.planned
        out = self.dropped | self.deferred
        planned = [position for position in range(end) if position not in out]
        late = [position for position in sorted(self.deferred) if position < end]
        return planned + late + [position for position in range(end, end + 400) if position not in out]

    def pass_over(self, first: int, stop: int) -> None:
        for position in self.order()[first:stop]:
            defers = self.planned is not None and position < self.planned and position not in self.deferred
            (self.deferred if defers else self.dropped).add(position)
        self.deferred -= self.dropped


@given(parts=st.lists(range_lists, max_size=4), holes=range_lists)
def test_ranges_are_sets(parts: list[list[Range]], holes: list[Range]) -> None:
    joined = union(*parts)
    assert members(joined) == set().union(*map(members, parts))
    assert all(first < stop for first, stop in joined)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(joined))  # they do not touch
    assert union(joined, joined) == joined
    assert size(joined) == len(members(joined))
    assert members(without(joined, holes)) == members(joined) - members(holes)


@given(dropped=range_lists, deferred=range_lists, planned=st.none() | st.just(PLANNED))
def test_every_sample_has_its_place(dropped: list[Range], deferred: list[Range], planned: int | None) -> None:
    skips = Skips(union(dropped), without(deferred, dropped) if planned else (), planned)
    oracle = Oracle(planned)
    oracle.dropped, oracle.deferred = members(skips.dropped), members(skips.deferred)
    assert [skips.position(number) for number in range(SHOWN)] == oracle.order()[:SHOWN]


@given(
    moves=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 15), st.integers(0, 20)), max_size=5),
    defers=st.booleans(),
)
@settings(max_examples=200)
def test_a_run_that_rolled_back_trained_on_what_a_run_told_beforehand_does(
    moves: list[tuple[int, int, int]], defers: bool
) -> None:
    """Each move trains on some samples, then passes over some that lie ahead: what was trained on stays as it was."""
    planned = PLANNED if defers else None
    skips, oracle, trained = Skips(), Oracle(planned), list[int]()
    for train, gap, length in moves:
        trained += [skips.position(len(trained) + k) for k in range(train)]
        first = len(trained) + gap
        before = members(skips.dropped) | members(skips.deferred)
        skips = skips.pass_over(first, first + length, planned=planned)
        oracle.pass_over(first, first + length)
        assert before <= members(skips.dropped) | members(skips.deferred)
        assert not members(skips.dropped) & members(skips.deferred)
        if not defers:
            assert len(members(skips.dropped) - before) == length
    assert [skips.position(number) for number in range(SHOWN)] == oracle.order()[:SHOWN]
    assert [skips.position(number) for number in range(len(trained))] == trained


@given(
    dropped=range_lists,
    deferred=range_lists,
    dp=st.sampled_from([1, 2, 4]),
    micro=st.sampled_from([1, 2]),
    resumed=st.integers(0, 8),
)
def test_a_global_batch_is_the_same_on_every_layout_and_after_any_resume(
    dropped: list[Range], deferred: list[Range], dp: int, micro: int, resumed: int
) -> None:
    """Sample i of micro-batch m of replica r is number consumed + (m * dp + r) * micro + i, as in the loader."""
    skips = Skips(union(dropped), without(deferred, dropped), PLANNED)
    whole = [skips.position(number) for number in range(10 * 8)]
    for step in range(10):
        if step == resumed:
            skips = Skips.from_plain(json.loads(json.dumps(skips.to_plain())))
        batch: dict[int, int] = {}
        for replica in range(dp):
            for first in range(replica * micro, 8, dp * micro):
                batch |= {slot: skips.position(step * 8 + slot) for slot in range(first, first + micro)}
        assert [batch[slot] for slot in range(8)] == whole[step * 8 : step * 8 + 8]


@given(dropped=range_lists, deferred=range_lists, first=st.integers(0, 80), count=st.integers(0, 60))
def test_ranges_of_samples_are_their_positions(
    dropped: list[Range], deferred: list[Range], first: int, count: int
) -> None:
    skips = Skips(union(dropped), without(deferred, dropped), PLANNED)
    listed = [position for begin, end in skips.ranges(first, first + count) for position in range(begin, end)]
    assert listed == [skips.position(number) for number in range(first, first + count)]


def test_data_put_off_come_back_once_and_only_once() -> None:
    once = Skips().pass_over(10, 20, planned=40)
    assert [once.position(number) for number in (9, 10, 29, 30, 39, 40)] == [9, 20, 39, 10, 19, 40]
    twice = once.pass_over(30, 35, planned=40)  # the first five of those that came back
    assert (twice.dropped, twice.deferred) == (((10, 15),), ((15, 20),))
    assert sorted(twice.position(number) for number in range(40)) == [*range(10), *range(15, 45)]


@pytest.mark.parametrize("ranges", [10, 10_000])
def test_looking_up_a_sample_does_not_walk_the_ranges(ranges: int) -> None:
    skips = Skips(tuple((10 * k, 10 * k + 1) for k in range(ranges)))
    starts, _ = skips._order
    probes = _Counting(starts)
    skips.__dict__["_order"] = (probes, skips._order[1])
    assert skips.position(9 * ranges - 1) == 10 * ranges - 1
    assert probes.looks <= 2 + ranges.bit_length()


class _Counting(list[int]):
    looks = 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        self.looks += 1
        return super().__getitem__(index)
