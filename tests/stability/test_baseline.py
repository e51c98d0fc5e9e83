"""The normal level of a signal, against what numpy says of the same values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.stability.baseline import Baseline


def filled(values: list[float], window: int = 64, excess: float = 1e-9) -> Baseline:
    baseline = Baseline(window, 8, excess)
    for value in values:
        baseline.accept(value)
    return baseline


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=8, max_size=90), z=st.floats(0.1, 20))
def test_level_and_spread_are_medians_about_a_line_through_the_halves(values: list[float], z: float) -> None:
    kept = np.array(values[-64:])
    half = len(kept) // 2
    slope = (np.median(kept[half:]) - np.median(kept[:half])) / (len(kept) / 2)
    off = kept - slope * (np.arange(len(kept)) - (half + len(kept) - 1) / 2)
    sigma = 1.4826 * np.median(np.abs(off - np.median(off)))
    ahead = max(0.0, slope * (len(kept) - (half + len(kept) - 1) / 2))
    baseline = filled(values)
    assert baseline.level_and_sigma() == pytest.approx((np.median(kept[half:]) + ahead, sigma), abs=1e-9)
    assert baseline.limit(z) == pytest.approx(sum((np.median(kept[half:]), ahead, max(z * sigma, 1e-9))), abs=1e-9)


@given(seed=st.integers(0, 10**6), slope=st.floats(-0.5, 0.5))
def test_a_trend_is_no_spread(seed: int, slope: float) -> None:
    noise = 0.01 * np.random.default_rng(seed).standard_normal(64)
    level, sigma = filled([float(slope * k + noise[k]) for k in range(64)]).level_and_sigma()
    assert 0.003 < sigma < 0.03
    assert level >= slope * 63 - 0.02  # never below where the trend stands: that would alarm by itself


def test_a_few_huge_values_move_nothing_much() -> None:
    clean = [float(value) for value in np.random.default_rng(0).standard_normal(64)]
    hit = [1e6 if k % 9 == 0 else value for k, value in enumerate(clean)]
    assert filled(hit).limit(8) < filled(clean).limit(8) + 3


def test_nothing_is_known_before_it_is_warm() -> None:
    assert filled([1.0] * 7).limit(8) == math.inf
    assert filled([1.0] * 8).limit(8) == pytest.approx(1.0)
    assert filled([1.0] * 8, excess=0.1).limit(8) == pytest.approx(1.1)


def test_it_can_be_moved_and_widened() -> None:
    baseline = filled([float(k % 3) for k in range(64)])
    _, sigma = baseline.level_and_sigma()
    baseline.move([11.0, 10.0, 12.0])
    assert baseline.level_and_sigma() == pytest.approx((11.0, sigma))
    baseline.widen(40.0, 8)
    assert baseline.limit(8) > 40.0 + 7 * sigma
    baseline.widen(15.0, 8)
    assert baseline.limit(5) > 40.0
