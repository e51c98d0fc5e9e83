"""The detectors' figures of merit: no rollback on clean curves, abrupt spikes found within three steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.config import StabilityConfig
from engine.stability.signals import ROLLBACK, SKIP
from engine.stability.watch import Watch
from tests.stability.calibration import injections, made_up_curves, recorded_curves, sail, table
from tests.stability.curves import BLOOM, NOISE, RAMP, RECORDED, SINGLE, STEP, Curve, made_up, recorded


@pytest.mark.parametrize("noise", [noise for noise in NOISE if noise != "level shift"])
def test_no_rollback_in_twenty_thousand_clean_steps(noise: str) -> None:
    voyage = sail(Watch(StabilityConfig()), made_up(noise, 20_000, seed=1))
    assert voyage.places[ROLLBACK] == voyage.places["level"] == []
    assert len(voyage.places[SKIP]) <= 20_000 // 100  # a wrongly skipped update costs a step


def test_a_level_that_returns_is_accepted_after_one_rollback() -> None:
    voyage = sail(Watch(StabilityConfig()), made_up("level shift", 4_000, seed=1))
    up = [1_000, 3_000]
    assert [place // 10 * 10 for place in voyage.places[ROLLBACK]] == up
    assert len(voyage.places["level"]) == 2
    assert all(place < shift + 50 for place, shift in zip(voyage.places["level"], up, strict=True))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_no_rollback_on_clean_runs_of_the_engine(path: object) -> None:
    voyage = sail(Watch(StabilityConfig()), recorded(path))  # type: ignore[arg-type]
    assert voyage.places[ROLLBACK] == voyage.places["level"] == []
    assert len(voyage.places[SKIP]) <= 2


@pytest.mark.parametrize("curves", [made_up_curves, recorded_curves])
def test_abrupt_spikes_are_found_within_three_steps(curves: Callable[[], dict[str, Curve]]) -> None:
    found = [first for _, _, first in injections(curves(), 200, seed=3)]
    assert len(found) == 200
    assert sum(first.get(ROLLBACK, 99) <= 3 for first in found) >= 190


@pytest.mark.parametrize(("trouble", "skipped", "rolled_back"), [(BLOOM, 1, 2), (STEP, 0, 2), (SINGLE, 0, None)])
def test_each_shape_gets_its_answer(trouble: Curve, skipped: int | None, rolled_back: int | None) -> None:
    onset = 600
    voyage = sail(Watch(StabilityConfig()), made_up("gauss", 700, seed=2).with_trouble(onset, trouble))
    for kind, delay in ((SKIP, skipped), (ROLLBACK, rolled_back)):
        expected = [] if delay is None else [onset + delay]
        assert voyage.places[kind][:1] == expected


def test_a_slow_ramp_is_found_though_no_step_stands_out() -> None:
    curve = made_up("gauss", 4_000, seed=2).with_trouble(3_000, RAMP)
    voyage = sail(Watch(StabilityConfig()), curve)
    found = voyage.places[ROLLBACK][0]
    assert 3_300 < found < 3_800
    assert all(place > found for place in voyage.places[SKIP])
    assert sail(Watch(StabilityConfig(slow_margin=9.0)), curve).places[ROLLBACK] == []


def test_the_table_has_a_number_for_every_rule_and_curve() -> None:
    rows = [line.strip("| ").split(" | ") for line in table(600, onset=300).splitlines()]
    assert {len(row) for row in rows if "---" not in row[0]} == {9}
    assert rows[3][0] == "skip (1 step)"
    assert [row[5] for row in rows[2:5]] == ["0", "1", "2"]  # BLOOM's shape
