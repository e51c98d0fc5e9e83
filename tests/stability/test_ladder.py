"""Which rung answers what: the first try, further tries at a place, cool-downs, budgets, and the ends of the ladder."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import StabilityConfig
from engine.stability.actions import GO_ON, LOWER, ROLLBACK, SKIP, STOP, Action
from engine.stability.ladder import Snapshot, decide, is_healthy
from engine.stability.signals import ROLLBACK as BACK
from engine.stability.signals import Verdict

BATCH = 8
POLICY = StabilityConfig()
SPIKE = Verdict(BACK, "spike", 1000, "3 outliers in 8 steps")
START = Snapshot(0, is_start=True)
STATES = [START, *(Snapshot(step) for step in range(100, 1001, 100))]


def answer(
    done: list[Action] | None = None,
    step: int = 1002,
    verdict: Verdict = SPIKE,
    states: list[Snapshot] = STATES,
    policy: StabilityConfig = POLICY,
) -> Action:
    return decide(done or [], step, verdict, states, policy, lambda _, trained: trained * BATCH)


def test_light_verdicts_touch_nothing() -> None:
    assert answer(verdict=Verdict()) == Action(GO_ON, 1002)
    assert answer(verdict=Verdict("skip", "spike", 1002, "x")) == Action(SKIP, 1002, "spike", "x", 1002)
    assert answer(policy=StabilityConfig(rollback=False)).kind == SKIP


def test_a_spike_goes_back_to_a_healthy_state_older_than_its_onset_and_passes_its_data_over() -> None:
    first = answer()
    assert (first.kind, first.to, first.lr_factor) == (ROLLBACK, 900, 1.0)
    assert (first.first, first.stop) == (990 * BATCH, 1040 * BATCH)
    sick = [replace(state, healthy=state.step < 800) for state in STATES]
    assert answer(states=sick).to == 700
    assert answer(states=[*STATES, Snapshot(950), Snapshot(951)]).to == 950
    assert answer(policy=StabilityConfig(min_rewind=101)).to == 800


def test_the_start_is_old_enough_for_a_run_that_goes_wrong_at_once() -> None:
    early = Verdict(BACK, "nonfinite", 3, "x")
    action = answer(step=4, verdict=early, states=[START, Snapshot(2)])
    assert (action.kind, action.to, action.first, action.stop) == (ROLLBACK, 0, 0, 43 * BATCH)


def test_a_long_spike_passes_twice_its_length_over_and_never_what_the_state_was_trained_on() -> None:
    long = answer(step=1049)
    assert (long.first, long.stop) == (990 * BATCH, (990 + 10 + 2 * 50) * BATCH)
    wide = answer(policy=StabilityConfig(skip_before=300))
    assert (wide.first, wide.stop) == (900 * BATCH, 1006 * BATCH)  # at least what was seen up to now


def test_every_try_at_a_place_goes_further_back_passes_more_over_and_then_lowers_the_rate() -> None:
    done: list[Action] = []
    policy = StabilityConfig(tries=4)
    for _ in range(policy.tries):
        done.append(answer(done, policy=policy))
    assert [action.to for action in done] == [900, 800, 700, 600]
    assert [action.stop - action.first for action in done] == [50 * BATCH, 100 * BATCH, 200 * BATCH, 400 * BATCH]
    assert [action.first for action in done] == [990 * BATCH, 980 * BATCH, 960 * BATCH, 920 * BATCH]
    assert [action.lr_factor for action in done] == [1.0, 1.0, 0.5, 0.5]
    assert (done[-1].hold, done[-1].rewarm) == (500, 200)
    last = answer(done, policy=policy)
    assert last.kind == STOP
    assert last.reason.startswith("step 1000: 3 outliers in 8 steps, still after 4 tries to get past it; ")
    assert "stability.tries=4 allows no further rollback: write a lower optim.lr" in last.reason
    assert last.reason.endswith(", or a larger stability.tries.")


def test_another_place_starts_afresh() -> None:
    done = [answer(), answer([answer()])]
    assert answer(done, 1131, replace(SPIKE, onset=1129)).to == 1000
    assert answer(done, 1131, replace(SPIKE, onset=1128)).to == 700


def test_the_oldest_state_is_gone_back_to_again_when_there_is_no_older_one() -> None:
    first = answer(states=[Snapshot(0)])
    assert answer([first], states=[Snapshot(0)]).to == 0


def test_the_start_of_a_long_run_is_not_gone_back_to() -> None:
    """A second try where two checkpoints are kept must not train for weeks again."""
    late = replace(SPIKE, onset=9_010)
    states = [START, Snapshot(8_000), Snapshot(9_000)]
    first = answer(step=9_012, verdict=late, states=states)
    second = answer([first], 9_012, late, states)
    assert (first.to, second.to) == (8_000, 8_000)
    assert second.stop - second.first == 2 * (first.stop - first.first)
    assert "a larger stability.restart_within" in answer(step=9_012, verdict=late, states=[START]).reason
    begun = Snapshot(8_990, is_start=True)  # with the checkpoint of another run
    assert answer(step=9_012, verdict=late, states=[begun]).to == 8_990


def test_budgets_end_the_ladder() -> None:
    far = [Action(ROLLBACK, place + 2, "spike", "", place, place - 60) for place in range(2000, 12000, 1000)]
    late = replace(SPIKE, onset=20_000)
    states = [Snapshot(19_000)]
    assert answer(far[:9], 20_002, late, states).kind == ROLLBACK
    assert "stability.budget=10 allows" in answer(far, 20_002, late, states).reason
    close = [replace(action, step=19_500 + k) for k, action in enumerate(far[:5])]
    assert "stability.budget_in_span=5 allows" in answer(close, 20_002, late, states).reason
    assert answer(close[:4], 20_002, late, states).kind == ROLLBACK


def test_after_a_rollback_a_spike_must_wait_and_a_nan_must_not() -> None:
    done = [Action(ROLLBACK, 1002, "spike", "", 1000, 900)]
    assert answer(done, 919, replace(SPIKE, onset=910)).kind == SKIP
    assert answer(done, 920, replace(SPIKE, onset=910)).kind == ROLLBACK
    assert answer(done, 905, Verdict(BACK, "nonfinite", 904, "x")).kind == ROLLBACK
    lowered = [Action(LOWER, 1002, "spike", "", 1000)]
    assert answer(lowered, 1010).kind == SKIP


def test_slow_divergence_lowers_the_rate_instead_of_blaming_data() -> None:
    slow = Verdict(BACK, "slow", 700, "smoothed loss")
    back = answer(verdict=slow)
    assert (back.to, back.first, back.stop, back.lr_factor) == (600, 0, 0, 0.5)
    kept = answer(verdict=slow, policy=StabilityConfig(lr_factor=1.0))  # the same steps again would end the same
    assert (kept.first, kept.stop) == (690 * BATCH, (700 - 10 + 10 + 2 * 303) * BATCH)


def test_without_a_state_to_go_back_to_the_rate_is_lowered_or_the_run_stops() -> None:
    young = [Snapshot(960), Snapshot(500, healthy=False)]
    assert "no healthy state is old enough" in answer(states=young).reason
    lowered = answer(states=young, policy=StabilityConfig(lower_after=0))
    assert (lowered.kind, lowered.lr_factor, lowered.begins) == (LOWER, 0.5, 1003)


def test_steps_made_again_after_a_crash_are_answered_as_they_were() -> None:
    """The ledger knows more by then than it did: neither is a rate lowered twice, nor a cool-down cut short."""
    young = [Snapshot(960)]
    policy = StabilityConfig(lower_after=0)
    nan = replace(SPIKE, cause="nonfinite")
    lowered = answer(verdict=nan, states=young, policy=policy)
    assert answer([lowered], verdict=nan, states=young, policy=policy).kind == SKIP
    further = Action(ROLLBACK, 1100, "spike", "", 1090, 990)  # behind it: the step is a new one
    assert answer([lowered, further], verdict=nan, states=young, policy=policy).kind == LOWER
    first, later = Action(ROLLBACK, 880, "spike", "", 870, 800), Action(ROLLBACK, 990, "spike", "", 980, 900)
    cooling = replace(SPIKE, onset=811)
    assert answer([first], 812, cooling).kind == SKIP
    assert answer([first, later], 812, cooling).kind == SKIP


@given(
    onset=st.integers(0, 3000),
    length=st.integers(1, 300),
    cause=st.sampled_from(["spike", "nonfinite", "overflow", "slow"]),
    states=st.lists(st.builds(Snapshot, st.integers(0, 3000), st.booleans()), max_size=8),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "min_rewind": st.integers(0, 200),
            "skip_before": st.integers(0, 400),
            "lower_after": st.integers(0, 3),
        },
    ),
    tries=st.integers(0, 6),
)
def test_no_rollback_repeats_what_it_came_from(
    onset: int, length: int, cause: str, states: list[Snapshot], changes: dict[str, Any], tries: int
) -> None:
    """Whatever comes: a state that was healthy and old enough, and either other data or another rate after it."""
    policy = StabilityConfig(budget_in_span=9, **changes)
    step, verdict, done = onset + length - 1, Verdict(BACK, cause, onset, "x"), list[Action]()
    for _ in range(tries):
        action = answer(done, step, verdict, states, policy)
        assert Action.from_plain(json.loads(json.dumps(action.to_plain()))) == action
        assert answer(done, step, verdict, states, policy) == action  # again after a crash
        assert action.kind in (ROLLBACK, LOWER, STOP, SKIP)
        if action.kind == ROLLBACK:
            assert Snapshot(action.to, True) in states
            assert action.to <= onset - policy.min_rewind
            assert action.first < action.stop or action.lr_factor < 1
            assert action.first == action.stop == 0 or action.to * BATCH <= action.first <= onset * BATCH < action.stop
        if action.kind in (ROLLBACK, LOWER):
            done.append(action)
    assert len(done) <= policy.tries


@pytest.mark.parametrize(("now", "troubles", "healthy"), [(149, [], False), (150, [], True), (150, [149], False),
                                                          (150, [100], False), (300, [99, 150], True)])  # fmt: skip
def test_a_state_is_healthy_when_nothing_was_odd_for_a_while_after_it(
    now: int, troubles: list[int], healthy: bool
) -> None:
    assert is_healthy(100, now, troubles, 50) is healthy
