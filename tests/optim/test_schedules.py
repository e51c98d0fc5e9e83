"""Learning rate and batch size as pure functions: shapes, ends, and the ramp's arithmetic."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import OptimConfig, TrainConfig
from engine.optim.schedules import global_batch, learning_rate, plan

STEPS = 100


def curve(schedule: str, **changes: float) -> list[float]:
    config = OptimConfig(lr=1.0, min_lr=0.1, schedule=schedule, warmup_steps=10, **changes)  # type: ignore[arg-type]
    return [learning_rate(step, config, STEPS) for step in range(STEPS + 20)]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "inverse_sqrt", "wsd"])
def test_warm_up_is_linear_and_the_rest_falls_between_the_bounds(schedule: str) -> None:
    rates = curve(schedule)
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(rates) == pytest.approx(1.0)
    assert all(0.1 <= rate <= 1.0 for rate in rates[10:])
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_where_each_schedule_is_on_its_way() -> None:
    assert curve("cosine")[54] == pytest.approx(0.55)
    assert curve("linear")[54] == pytest.approx(0.55)
    assert curve("linear")[STEPS - 1 :] == pytest.approx([0.1] * 21)
    assert curve("cosine")[STEPS - 1 :] == pytest.approx([0.1] * 21)
    assert curve("linear")[STEPS - 2] > 0.1
    assert curve("inverse_sqrt")[39] == pytest.approx(0.5)
    assert curve("wsd")[89] == 1.0
    assert curve("wsd")[94] == pytest.approx(0.55)
    assert curve("wsd")[99] == pytest.approx(0.1)
    assert curve("constant")[-1] == 1.0
    assert curve("linear", decay_steps=60)[59] == pytest.approx(0.1)


def test_even_ten_steps_decay() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.1, schedule="wsd", warmup_steps=0)
    assert [learning_rate(step, config, 10) for step in (8, 9)] == pytest.approx([1.0, 0.1])
    assert learning_rate(0, config, 1) == 1.0


def test_no_warm_up_starts_at_the_peak() -> None:
    assert learning_rate(0, OptimConfig(lr=1.0, min_lr=0.0, warmup_steps=0), STEPS) == 1.0


def test_ramp_follows_megatrons_example() -> None:
    """--rampup-batch-size 16 8 300 with a global batch of 64: 6 increments, one every 50 samples."""
    config = TrainConfig(global_batch=64, ramp=[16, 8, 300])
    assert [global_batch(consumed, config) for consumed in (0, 49, 50, 100, 299, 300, 10**6)] == [
        16, 16, 24, 32, 56, 64, 64,
    ]  # fmt: skip
    assert global_batch(0, TrainConfig(global_batch=64)) == 64


@given(first=st.integers(1, 8), increment=st.integers(1, 4), stages=st.integers(1, 6), samples=st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_a_plan_can_be_taken_up_anywhere(first: int, increment: int, stages: int, samples: int) -> None:
    config = TrainConfig(global_batch=first + increment * stages, ramp=[first, increment, samples])
    whole = list(plan(0, 50, config))
    assert all(a[0] + a[1] == b[0] for a, b in itertools.pairwise(whole))
    assert whole[-1][1] <= config.global_batch
    for cut in (1, 17, 49):
        assert list(plan(whole[cut][0], 50 - cut, config)) == whole[cut:]


def test_restarts_begin_anew() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.1, schedule="cosine", warmup_steps=3, restart_steps=20)
    once = [learning_rate(step, config, STEPS) for step in range(20)]
    assert once[2] == 1.0
    assert once[19] == pytest.approx(0.1)
    assert [learning_rate(step, config, STEPS) for step in range(20, 60)] == once * 2
