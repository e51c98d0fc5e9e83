"""Which rung of the ladder answers a verdict: skip, roll back past the data, further, at a lower rate, stop.

Pure: the same ledger, verdict, snapshots and policy give the same action on every rank, and again after a crash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from engine.config import StabilityConfig
from engine.stability.actions import GO_ON, LOWER, ROLLBACK, SKIP, STOP, Action, begun
from engine.stability.signals import DRIFT, OK, Verdict
from engine.stability.signals import SKIP as SKIPPED


@dataclass(frozen=True)
class Snapshot:
    """A state that can be restored, in memory or on disk. `healthy`: nothing was odd for a while after it."""

    step: int  # trained steps in it
    healthy: bool = True
    consumed: int = 0  # samples they trained on
    is_start: bool = False  # of the run: nothing of it lies before


def is_healthy(step: int, now: int, troubles: Iterable[int], least: int) -> bool:
    """Say whether a state of trained step `step` was followed by `least` steps, by step `now`, without trouble."""
    return now >= step + least and not any(step <= trouble < step + least for trouble in troubles)


def decide(
    done: Sequence[Action],
    step: int,
    verdict: Verdict,
    snapshots: Iterable[Snapshot],
    policy: StabilityConfig,
    consumed_at: Callable[[Snapshot, int], int],
    planned: Callable[[], int] = lambda: 0,
) -> Action:
    """Return what to do about the verdict on trained step `step`, after the decisions `done`.

    `consumed_at(state, s)` is the number of samples that a run from `state` on has trained before trained step s;
    `planned()` those of the whole run, to whose end data are put off.
    """
    if verdict.kind == OK:
        return Action(GO_ON, step)
    action = Action(SKIP, step, verdict.cause, verdict.reason, verdict.onset)
    past = [other for other in done if other.kind in (ROLLBACK, LOWER)]
    if not policy.rollback and verdict.cause == DRIFT:
        return _stop(action, verdict, [], "stability.rollback=false")
    if verdict.kind == SKIPPED or not policy.rollback or _is_answered(past, step, verdict, policy):
        return action
    here = _tries_here(past, verdict, policy)
    spent = _spent(past, here, step, policy)
    if spent:
        return _stop(action, verdict, here, spent)
    can_lower = (policy.lr_factor < 1 or policy.clip_factor < 1) and verdict.cause != DRIFT
    lowers = can_lower and (verdict.cause == "slow" or len(here) >= policy.lower_after)
    if lowers:
        action = replace(
            action, lr_factor=policy.lr_factor, clip_factor=policy.clip_factor, hold=policy.lr_hold,
            rewarm=policy.lr_rewarm,
        )  # fmt: skip
    target = _target(snapshots, verdict, here, policy)
    if target is None:
        if lowers:
            return replace(action, kind=LOWER)
        return _stop(action, verdict, here, "")
    action = replace(action, kind=ROLLBACK, to=target.step)
    if verdict.cause == DRIFT or (verdict.cause == "slow" and lowers):
        return action  # what a machine did, or what came on over hundreds of steps, is no batch's fault
    first, stop = _window(step, verdict, len(here), policy)
    first = max(first, target.step)  # what the state was trained on cannot be passed over any more
    if first >= stop:
        return action
    return replace(
        action, first=consumed_at(target, first), stop=consumed_at(target, stop),
        planned=planned() if policy.skip == "defer" else None,
    )  # fmt: skip


def _is_answered(past: list[Action], step: int, verdict: Verdict, policy: StabilityConfig) -> bool:
    """Say whether an action covers this step: made again after a crash it was lowered for already, or, but for
    non-finite steps, an action before it is too recent to be judged. Actions of later steps do not count.
    """
    if any(action.kind == LOWER and action.step == step < begins for action, begins in begun(past)):
        return True
    if verdict.cause in ("nonfinite", "overflow", DRIFT):
        return False
    return any(begins <= step < begins + policy.cooldown for _, begins in begun(past))


def _tries_here(past: list[Action], verdict: Verdict, policy: StabilityConfig) -> list[Action]:
    """Return the actions that answered this place."""
    return [action for action in past if abs(action.onset - verdict.onset) <= policy.same_place]


def _spent(past: list[Action], here: list[Action], step: int, policy: StabilityConfig) -> str:
    """Return what leaves no further try, as key=value, "" when nothing does."""
    used = {
        "tries": len(here),
        "budget": len(past),
        "budget_in_span": sum(action.step > step - policy.budget_span for action in past),
    }
    limits = {key: getattr(policy, key) for key in used}
    return next((f"stability.{key}={limits[key]}" for key in used if used[key] >= limits[key]), "")


def _target(
    snapshots: Iterable[Snapshot], verdict: Verdict, here: list[Action], policy: StabilityConfig
) -> Snapshot | None:
    """Return the newest healthy state old enough, and where one is left, older than those tried at this place.

    The start of the run is old enough for any onset, and counts as a state only for the first steps of the run: to
    train for weeks again is nothing to decide without a person.
    """
    newest = verdict.onset if verdict.cause == DRIFT else verdict.onset - policy.min_rewind
    fit = [
        state
        for state in snapshots
        if state.healthy
        and (verdict.onset - state.step <= policy.restart_within if state.is_start else state.step <= newest)
    ]
    tried = min((action.to for action in here if action.kind == ROLLBACK), default=math.inf)
    fresh = [state for state in fit if state.step < tried]
    return max(fresh or fit, key=lambda state: state.step, default=None)


def _window(step: int, verdict: Verdict, tries: int, policy: StabilityConfig) -> tuple[int, int]:
    """Return the steps [first, stop) whose data are passed over: around the onset, twice a long spike's length."""
    if policy.skip_least == 0:
        return 0, 0
    wider = policy.widen**tries
    before = math.ceil(policy.skip_before * wider)
    length = max(policy.skip_least, policy.skip_before + 2 * (step - verdict.onset + 1))
    first = verdict.onset - before
    return first, max(step + 1, first + math.ceil(length * wider))


def _stop(action: Action, verdict: Verdict, here: list[Action], spent: str) -> Action:
    """Return the end of the ladder; its onset is that of the first trouble at this place, before all tries."""
    onset = min([verdict.onset, *(other.onset for other in here)])
    return replace(action, kind=STOP, onset=onset, reason=_explain(verdict, here, spent))


def _explain(verdict: Verdict, here: list[Action], spent: str) -> str:
    tried = f", still after {len(here)} tries to get past it" if here else ""
    why = "no healthy state is old enough to go back to"
    more = "a smaller stability.min_rewind, or a larger stability.restart_within to begin anew"
    if verdict.cause == DRIFT:
        return f"step {verdict.onset}: {verdict.reason}{tried}; {spent or why}: leave out the machines of these ranks."
    if spent:
        why, more = f"{spent} allows no further rollback", f"a larger {spent.partition('=')[0]}"
    return f"step {verdict.onset}: {verdict.reason}{tried}; {why}: write a lower optim.lr or optim.clip, or {more}."
