"""Branches: what a run stands on, and what it left behind."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.monitor.report.table import branches, to_table


def steps(*stretches: Sequence[int]) -> list[dict[str, float]]:
    """Records of the stretches of steps, each with its place in the file as its loss."""
    return [{"step": step, "loss": place} for place, step in enumerate(step for part in stretches for step in part)]


def test_a_run_that_never_went_back_is_one_branch() -> None:
    kept, left = branches(to_table(steps(range(1, 6))))
    assert kept.steps.tolist() == [1, 2, 3, 4, 5]
    assert left == []


def test_a_rollback_leaves_a_branch_and_its_later_records_win() -> None:
    kept, left = branches(to_table(steps(range(1, 9), range(5, 8))))
    assert kept.steps.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert kept.values("loss").tolist() == [0, 1, 2, 3, 8, 9, 10]
    assert [branch.steps.tolist() for branch in left] == [[5, 6, 7, 8]]


def test_going_back_again_and_further() -> None:
    kept, left = branches(to_table(steps(range(1, 7), range(4, 9), range(2, 4))))
    assert kept.steps.tolist() == [1, 2, 3]
    assert [branch.steps.tolist() for branch in left] == [[4, 5, 6], [2, 3, 4, 5, 6, 7, 8]]


def test_columns_that_come_and_go() -> None:
    table = to_table([{"step": 1}, {"step": 2, "mfu": 3.5}, {"step": 3, "mfu": None}])
    assert np.isnan(table.values("mfu")).tolist() == [True, False, True]
    assert np.isnan(table.values("unknown")).all()
    assert len(to_table([])) == 0
    assert branches(to_table([]))[1] == []


@given(st.lists(st.integers(0, 8), min_size=1, max_size=6), st.data())
def test_every_record_is_in_one_branch(backs: list[int], data: st.DataObject) -> None:
    """However often the run went back: nothing is lost or doubled, and the kept branch is the newest of each step."""
    parts, reached = [], 0
    for back in backs:
        first = max(0, reached - back) + 1
        reached = first - 1 + data.draw(st.integers(1, 6))
        parts.append(range(first, reached + 1))
    rows = steps(*parts)
    kept, left = branches(to_table(rows))
    places = [place for table in (kept, *left) for place in table.values("loss").tolist()]
    assert sorted(places) == list(range(len(rows)))
    newest = {row["step"]: row["loss"] for row in rows if row["step"] <= reached}
    assert kept.steps.tolist() == list(range(1, reached + 1))
    assert kept.values("loss").tolist() == [newest[step] for step in range(1, reached + 1)]
    assert all(math.isfinite(place) for place in places)
