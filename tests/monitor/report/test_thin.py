"""Down-sampling keeps what people look for: the highest, the lowest, the gaps."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.monitor.report.thin import extremes, marks


@given(st.integers(0, 2**32 - 1), st.integers(1, 5000), st.integers(1, 50))
def test_extremes_of_every_part_stay(seed: int, rows: int, stretches: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(rows)
    values[rng.random(rows) < 0.01] = np.nan
    kept = extremes(values, stretches)
    assert len(kept) <= max(2 * stretches, 3 * stretches + 2)
    assert (np.diff(kept) > 0).all()
    assert (kept[0], kept[-1]) == (0, rows - 1)
    if np.isfinite(values).any():
        assert np.nanmax(values[kept]) == np.nanmax(values)
        assert np.nanmin(values[kept]) == np.nanmin(values)
    assert np.isnan(values[kept]).any() == np.isnan(values).any()


def test_one_bad_step_of_a_long_run_is_kept() -> None:
    values = np.zeros(100_000)
    values[77_777] = 9.0
    assert 77_777 in extremes(values, 600)


def test_few_values_are_all_kept() -> None:
    assert extremes(np.arange(7.0), 10).tolist() == list(range(7))
    assert extremes(np.empty(0), 10).tolist() == []


def test_marks_are_as_many_as_can_be_told_apart() -> None:
    steps = np.arange(1, 50_001)
    thinned = marks(steps, 100_000, 1000)
    assert 490 <= len(thinned) <= 510
    assert marks(steps[:20], 100_000, 1000).tolist() == list(range(1, 21))
