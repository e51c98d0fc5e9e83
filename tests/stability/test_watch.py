"""The detectors together: what they say before a step and after it agree, and a saved state goes on as it was."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import StabilityConfig
from engine.stability.signals import OK, ROLLBACK, SKIP, Limits, Signals, Verdict
from engine.stability.watch import Watch
from tests.stability.curves import SIGMA, made_up

SMALL = StabilityConfig(
    window=24, warm=12, hold_start=3, hold_rollback=2, settle=4, slow_span=10, slow_patience=10, slow_margin=0.2
)


def wild(seed: int, steps: int) -> list[Signals]:
    """A curve with everything on it: outliers in rows and alone, shifts, NaN, infinity, fp16 overflows."""
    random = np.random.default_rng(seed)
    loss = 2 + 0.05 * random.standard_normal(steps) + (random.random(steps) < 0.1) * random.exponential(1, steps)
    norm = np.exp(0.1 * random.standard_normal(steps) + (random.random(steps) < 0.1) * random.exponential(2, steps))
    loss[steps // 2 :] += random.choice([0.0, 0.5])
    bad = random.random(steps)
    result = []
    for step in range(steps):
        values = (
            (math.nan, norm[step]) if bad[step] < 0.03 else (loss[step], math.inf if bad[step] < 0.06 else norm[step])
        )
        finite = all(map(math.isfinite, values))
        result.append(Signals(step, float(values[0]), float(values[1]), finite, scaled=bool(bad[step] < 0.045)))
    return result


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_a_device_that_was_told_the_limits_withholds_the_updates_that_are_called_skipped(seed: int) -> None:
    watch = Watch(SMALL)
    for signals in wild(seed, 120):
        limits = watch.limits()
        loss, norm = np.float32(signals.loss), np.float32(signals.grad_norm)  # what a device holds
        signals = replace(signals, loss=float(loss), grad_norm=float(norm))
        kept = bool(np.isfinite(loss) & np.isfinite(norm) & (loss <= np.float32(limits.loss)))
        kept = kept and bool(norm <= np.float32(limits.grad_norm))
        verdict = watch.observe(signals)
        assert kept == limits.admit(signals)
        if verdict.kind == OK or not kept:
            assert kept == (verdict.kind == OK)
        else:
            assert verdict.kind == ROLLBACK  # a row of odd steps, of which the last was still updated with
        if verdict.kind == ROLLBACK:
            assert verdict.onset <= signals.step
            watch.rolled_back(verdict)


@given(seed=st.integers(0, 10**6), cut=st.integers(0, 119))
@settings(max_examples=40, deadline=None)
def test_a_state_from_a_checkpoint_goes_on_as_if_never_left(seed: int, cut: int) -> None:
    signals, watch, resumed = wild(seed, 120), Watch(SMALL), Watch(SMALL)
    for place, each in enumerate(signals):
        if place == cut:
            resumed.load(json.loads(json.dumps(watch.state())))
        assert place < cut or resumed.limits() == watch.limits()
        verdict = watch.observe(each)
        assert place < cut or resumed.observe(each) == verdict
        if verdict.kind == ROLLBACK:
            for one in [watch, resumed] if place >= cut else [watch]:
                one.rolled_back(Verdict.from_plain(json.loads(json.dumps(verdict.to_plain()))))
    assert resumed.state() == watch.state()


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_what_a_step_shows_cannot_change_what_was_allowed_for_it(seed: int) -> None:
    """Limits come from the steps before: one NaN, or a huge value, moves none of those that follow."""
    clean, hit = Watch(SMALL), Watch(SMALL)
    for signals in [Signals(k, 2 + 0.01 * (k * seed % 7), 1.0, True) for k in range(40)]:
        for value in (math.nan, 1e30) if signals.step == 30 else ():
            hit.observe(Signals(signals.step, value, value, math.isfinite(value)))
        clean.observe(signals)
        hit.observe(signals)
    assert hit.limits() == clean.limits()


def feed(watch: Watch, count: int, start: int = 0, loss: float = 2.0, norm: float = 0.3) -> list[Verdict]:
    """Show `count` steps at a level, with a little noise."""
    wave = [SIGMA * math.sin(1.7 * k) for k in range(start, start + count)]
    return [watch.observe(Signals(start + k, loss + w, norm * math.exp(w), True)) for k, w in enumerate(wave)]


def warm() -> Watch:
    watch = Watch(StabilityConfig())
    assert {verdict.kind for verdict in feed(watch, 150)} == {OK}
    return watch


def test_one_outlier_is_skipped_and_three_of_eight_rolled_back_to_before_the_first() -> None:
    watch = warm()
    bad = [150, 153, 157]
    verdicts = [feed(watch, 1, step, loss=5.0 if step in bad else 2.0)[0] for step in range(150, 158)]
    assert [step for step, verdict in enumerate(verdicts, 150) if verdict.kind == SKIP] == bad[:2]
    assert (verdicts[-1].kind, verdicts[-1].onset, verdicts[-1].cause) == (ROLLBACK, 150, "spike")
    assert "loss 5" in verdicts[-1].reason


def test_outliers_far_apart_are_skipped_each_alone() -> None:
    watch = warm()
    verdicts = [feed(watch, 1, step, norm=9.0 if step % 8 == 0 else 0.3)[0] for step in range(150, 230)]
    assert {verdict.kind for verdict in verdicts} == {OK, SKIP}
    assert [verdict.onset for verdict in verdicts if verdict.kind == SKIP] == list(range(152, 230, 8))


@pytest.mark.parametrize(("norm", "kinds"), [(3.0, [OK] * 5 + [ROLLBACK]), (9.0, [SKIP, SKIP, ROLLBACK])])
def test_gradients_alone_are_a_spike_only_far_off_or_many_in_a_row(norm: float, kinds: list[str]) -> None:
    watch = warm()
    assert [verdict.kind for verdict in feed(watch, len(kinds), 150, norm=norm)] == kinds
    watch = warm()
    assert {verdict.kind for verdict in feed(watch, 5, 150, norm=3.0)} == {OK}
    assert {verdict.kind for verdict in feed(watch, 200, 155)} == {OK}


def test_a_burst_of_gradients_is_a_spike_as_soon_as_the_loss_shows_it() -> None:
    watch = warm()
    assert [verdict.kind for verdict in feed(watch, 2, 150, norm=3.0)] == [OK, OK]
    verdict = feed(watch, 1, 152, loss=2.5, norm=3.0)[0]
    assert (verdict.kind, verdict.onset) == (ROLLBACK, 150)


def test_two_non_finite_steps_in_a_row_are_rolled_back_even_at_the_start() -> None:
    for watch, start in ((Watch(StabilityConfig()), 0), (warm(), 150)):
        verdicts = [watch.observe(Signals(start + k, math.nan, math.nan, False)) for k in range(2)]
        assert [verdict.kind for verdict in verdicts] == [SKIP, ROLLBACK]
        assert (verdicts[1].cause, verdicts[1].onset) == ("nonfinite", start)
        watch.rolled_back(verdicts[1])
        assert watch.observe(Signals(start, math.nan, math.nan, False)).kind == SKIP  # counted anew


def test_a_search_for_the_loss_scale_is_let_be_and_a_storm_of_overflows_is_not() -> None:
    watch = warm()
    verdicts = [watch.observe(Signals(150 + k, 2.0, math.inf, False, scaled=True)) for k in range(12)]
    assert [verdict.kind for verdict in verdicts] == [SKIP] * 11 + [ROLLBACK]
    assert (verdicts[-1].cause, verdicts[-1].onset) == ("overflow", 150)
    watch = warm()
    kinds = [watch.observe(Signals(150 + k, 2.0, math.inf, False, scaled=False)).kind for k in range(2)]
    assert kinds == [SKIP, ROLLBACK]  # without a scale, an infinite gradient is a fault


@pytest.mark.parametrize(("norm", "times"), [(0.3, 1), (3.0, 2)])
def test_a_level_that_comes_back_is_accepted_and_one_that_climbs_further_is_not(norm: float, times: int) -> None:
    """A higher loss alone is accepted when it returns once, together with higher gradients when it returns twice."""
    for worse in (0.0, 2.0):
        watch, states = warm(), warm().state()
        for _ in range(times):
            verdict = feed(watch, 3, 150, loss=2.6, norm=norm)[-1]
            assert verdict.kind == ROLLBACK
            watch.load(states)
            watch.rolled_back(verdict)
            feed(watch, 8, 140)
        verdicts = feed(watch, 20, 150, loss=2.6 + worse, norm=norm)
        if worse:
            assert [verdict.kind for verdict in verdicts[:3]] == [SKIP, SKIP, ROLLBACK]
        else:
            assert {verdict.kind for verdict in verdicts} == {OK}
            assert [place for place, verdict in enumerate(verdicts) if verdict.cause == "level"] == [15]
            assert {verdict.kind for verdict in feed(watch, 100, 170, loss=2.6, norm=norm)} == {OK}
            assert feed(watch, 3, 270, loss=3.6, norm=norm)[-1].kind == ROLLBACK


@pytest.mark.parametrize("every", [4, 5, 7])
def test_what_an_eighth_of_all_steps_show_is_normal(every: int) -> None:
    """Every fifth batch from another source never asks for a rollback, and would be skipped forever."""
    watch = warm()
    verdicts = [feed(watch, 1, step, loss=4.0 if step % every == 0 else 2.0)[0] for step in range(150, 600)]
    skipped = [verdict for verdict in verdicts if verdict.kind != OK]
    assert [verdict.kind for verdict in skipped[:16]] == [SKIP] * 16
    assert skipped[15].cause == "level"
    assert len(skipped) == 16
    assert [verdict.kind for verdict in feed(watch, 3, 600, loss=6.0)] == [SKIP, SKIP, ROLLBACK]


def test_a_warm_up_in_the_middle_of_a_run_is_not_judged() -> None:
    watch = warm()
    watch.warm_up_begins()
    assert watch.limits() == Limits()
    assert {verdict.kind for verdict in feed(watch, 16, 150, loss=2.8, norm=4.0)} == {OK}
    assert feed(watch, 3, 166, loss=2.8, norm=4.0)[-1].kind == ROLLBACK


def test_policies_switch_parts_off() -> None:
    steps = [Signals(k, 2 + 0.01 * (k % 3), 1.0, True) for k in range(150)]
    off, seen = Watch(StabilityConfig(watch=False)), Watch(StabilityConfig(skip_update=False))
    for signals in steps:
        assert off.observe(signals) == seen.observe(signals) == Verdict()
    outlier = Signals(150, 9.0, 1.0, True)
    assert off.limits() == seen.limits() == Limits()
    assert off.observe(outlier) == Verdict()
    assert (seen.observe(outlier).kind, seen.observe(outlier).cause) == (OK, "spike")  # seen, but updated with
    assert seen.observe(replace(outlier, step=152)).kind == ROLLBACK
    for watch in (off, seen):
        assert watch.observe(Signals(153, math.nan, 1.0, False)).kind != OK


def test_only_a_rollback_rolls_back() -> None:
    with pytest.raises(ValueError, match="skip rolls nothing back"):
        warm().rolled_back(Verdict(SKIP))


def test_a_falling_curve_is_judged_by_where_it_is_not_by_where_it_was() -> None:
    """Through the steep start a plain median is nats above the present loss."""
    watch, curve = Watch(StabilityConfig()), made_up("gauss", 400, seed=5)
    for step in range(150):
        watch.observe(Signals(step, 6.0 - 0.02 * step, float(curve.norm[step]), True))
    assert 3.0 < watch.limits().loss < 4.5
