"""Order, pairing and medians of the bench; its table."""

from __future__ import annotations

import pytest

from tests.bench.pairs import Pairs, Plan, measure
from tests.bench.table import COLUMNS, Row, seconds, spread, to_markdown


def test_samples_alternate_between_barriers_after_the_warm_up() -> None:
    calls: list[str] = []
    plan = Plan(warmup=1, pairs=2, steps=2)
    measure(lambda: calls.append("a"), lambda: calls.append("b"), plan, lambda: calls.append("|"))
    assert "".join(calls) == "ab" + "|aa||bb|" * 2


def test_a_slower_peer_gives_a_ratio_above_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def work(duration: float) -> None:
        nonlocal now
        now += duration

    monkeypatch.setattr("tests.bench.pairs.time.perf_counter", lambda: now)
    pairs = measure(lambda: work(2.0), lambda: work(3.0), Plan(1, 2, 4), lambda: None)
    assert pairs == Pairs(ours=(2.0, 2.0), theirs=(3.0, 3.0))
    assert pairs.ratio == 1.5


def test_the_ratio_is_the_median_of_pairs_not_of_sides() -> None:
    pairs = Pairs(ours=(1.0, 2.0, 4.0), theirs=(3.0, 2.0, 2.0))
    assert pairs.ratios == [3.0, 1.0, 0.5]
    assert pairs.ratio == 1.0
    assert (pairs.ours_s, pairs.theirs_s) == (2.0, 2.0)


@pytest.mark.parametrize(("value", "text"), [(2.345, "2.35 s"), (0.0123, "12.3 ms"), (4.2e-5, "42 µs")])
def test_durations_have_fitting_units(value: float, text: str) -> None:
    assert seconds(value) == text


def test_markdown_has_one_line_of_equal_width_per_row() -> None:
    row = Row("step", "torch", "1 s", "2 s", spread([1.5, 2.0, 2.5], 2.0))
    text = to_markdown("a machine", COLUMNS, [row, row])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {6}
    assert "2.00 (1.50 to 2.50)" in text
