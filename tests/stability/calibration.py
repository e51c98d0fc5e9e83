"""False alarms and delays of the detectors on made-up and recorded curves: `python -m tests.stability.calibration`."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import fmean, pstdev

import numpy as np

from engine.config import StabilityConfig
from engine.stability.signals import OK, ROLLBACK, SKIP, Signals, Verdict
from engine.stability.watch import Watch
from tests.stability.curves import ABRUPT, BLOOM, NOISE, RAMP, RECORDED, SINGLE, STEP, Curve, made_up, recorded

STEPS = 20_000
SNAPSHOTS = 50  # steps between the states that can be rolled back to
TROUBLES = {"BLOOM's shape": BLOOM, "+0.3 x 30": STEP, "slow ramp": RAMP, "single +1": SINGLE}


@dataclass
class Voyage:
    """What a watch said on its way along a curve: places of verdicts, by kind."""

    places: dict[str, list[int]] = field(default_factory=lambda: {SKIP: [], ROLLBACK: [], "level": []})

    def note(self, place: int, verdict: Verdict) -> None:
        if verdict.cause == "level":
            self.places["level"].append(place)
        elif verdict.kind != OK:
            self.places[verdict.kind].append(place)


def sail(watch: Watch, curve: Curve) -> Voyage:
    """Follow a curve over data, not steps: a rollback restores an earlier watch, and goes on with the data after it."""
    voyage, policy = Voyage(), watch.policy
    states = {0: watch.state()}
    step = 0
    for place in range(len(curve)):
        loss, norm = float(curve.loss[place]), float(curve.norm[place])
        verdict = watch.observe(Signals(step, loss, norm, math.isfinite(loss) and math.isfinite(norm)))
        voyage.note(place, verdict)
        step += 1
        if verdict.kind == ROLLBACK:
            step = max((saved for saved in states if saved <= verdict.onset - policy.min_rewind), default=0)
            watch.load(states[step])
            watch.rolled_back(verdict)
            states = {saved: state for saved, state in states.items() if saved <= step}
        elif step % SNAPSHOTS == 0:
            states[step] = watch.state()
    return voyage


def delays(watch: Watch, state: dict[str, object], curve: Curve, onset: int, steps: int) -> dict[str, int]:
    """Return after how many steps from `onset` each kind of verdict first came, going on from `state` there."""
    watch.load(state)
    found: dict[str, int] = {}
    for place in range(onset, min(onset + steps, len(curve))):
        loss, norm = float(curve.loss[place]), float(curve.norm[place])
        verdict = watch.observe(Signals(place, loss, norm, True))
        found.setdefault(verdict.kind, place - onset)
        if verdict.kind == ROLLBACK:
            break
    return found


def states_along(curve: Curve, places: list[int]) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (place, the state of a watch that followed the curve until there) for places in rising order."""
    watch = Watch(StabilityConfig())
    at = 0
    for place in sorted(places):
        for step in range(at, place):
            watch.observe(Signals(step, float(curve.loss[step]), float(curve.norm[step]), True))
        at = place
        yield place, watch.state()


def injections(curves: dict[str, Curve], count: int, seed: int) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Put `count` abrupt spikes on `curves`; yield (curve, kind of spike, delay of each kind of verdict)."""
    random = np.random.default_rng(seed)
    names = sorted(curves)
    chosen = [(names[random.integers(len(names))], int(random.integers(100, 780))) for _ in range(count)]
    kinds = list(ABRUPT)
    watch, number = Watch(StabilityConfig()), 0
    for name in names:
        for onset, state in states_along(curves[name], [place for other, place in chosen if other == name]):
            kind = kinds[number % len(kinds)]
            number += 1
            yield name, kind, delays(watch, state, curves[name].with_trouble(onset, ABRUPT[kind](random)), onset, 12)


def recorded_curves() -> dict[str, Curve]:
    """Return the curves recorded from the engine."""
    return {path.stem: recorded(path) for path in RECORDED}


def made_up_curves() -> dict[str, Curve]:
    """Return a curve of 800 steps with each kind of noise but the level shift."""
    return {noise: made_up(noise, 800, seed=4) for noise in NOISE if noise != "level shift"}


# -- the rule others use, beside ours ------------------------------------------------------------------------------


def mean_rule(curve: Curve, window: int = 128, warm: int = 64, sigmas: float = 6.0) -> list[int]:
    """Return the places where loss or gradient norm is above mean + 6 deviations of all of the last 128 steps."""
    found: list[int] = []
    last: tuple[deque[float], deque[float]] = (deque(maxlen=window), deque(maxlen=window))
    for place in range(len(curve)):
        values = (float(curve.loss[place]), float(curve.norm[place]))
        pairs = list(zip(values, last, strict=True))
        if len(last[0]) >= warm and any(value > fmean(old) + sigmas * pstdev(old) for value, old in pairs):
            found.append(place)
        for value, old in pairs:
            old.append(value)
    return found


# -- the table -------------------------------------------------------------------------------------------------------

Rule = Callable[[Curve], list[int]]


def _ours(kind: str) -> Rule:
    return lambda curve: sail(Watch(StabilityConfig()), curve).places[kind]


RULES: dict[str, Rule] = {
    "mean + 6 sigma, 1 step": mean_rule, "skip (1 step)": _ours(SKIP), "roll back": _ours(ROLLBACK),
    "accepted as a new level": _ours("level"),
}  # fmt: skip


def table(steps: int, onset: int = 4000) -> str:
    """Return alarms on clean noise, and the delay of the first alarm after each trouble."""
    lines = [
        f"| rule | {' | '.join(NOISE)} | {' | '.join(TROUBLES)} |",
        "|---" * (1 + len(NOISE) + len(TROUBLES)) + "|",
    ]
    for name, rule in RULES.items():
        cells = [str(len(rule(made_up(noise, steps, seed=1)))) for noise in NOISE]
        for trouble in TROUBLES.values():
            curve = made_up("gauss", onset + len(trouble) + 400, seed=2).with_trouble(onset, trouble)
            found = [place - onset for place in rule(curve) if place >= onset]
            cells.append(str(found[0]) if found else "none")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _injection_table(count: int) -> str:
    lines = [
        "| abrupt spikes on | kind | injected | rolled back within 3 steps | steps to it |",
        "|---|---|---|---|---|",
    ]
    for title, curves in (("made-up curves", made_up_curves()), ("recorded curves", recorded_curves())):
        found: dict[str, list[int]] = {kind: [] for kind in ABRUPT}
        for _, kind, first in injections(curves, count, seed=3):
            found[kind].append(first.get(ROLLBACK, 99))
        for kind, steps in found.items():
            soon = sum(step <= 3 for step in steps)
            spread = ", ".join(f"{step} ({times} x)" for step, times in sorted(Counter(steps).items()))
            lines.append(f"| {title} | {kind} | {len(steps)} | {soon} | {spread.replace('99', 'none in 12')} |")
    return "\n".join(lines)


def _recorded_table() -> str:
    lines = ["| recorded run | steps | skipped | rolled back | accepted |", "|---|---|---|---|---|"]
    for path in RECORDED:
        curve = recorded(path)
        voyage = sail(Watch(StabilityConfig()), curve)
        counts = " | ".join(str(len(places)) for places in voyage.places.values())
        lines.append(f"| {path.stem} | {len(curve)} | {counts} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"Alarms on {STEPS:,} clean steps, and steps from onset to alarm:\n\n{table(STEPS)}\n")
    print(f"{_recorded_table()}\n\n{_injection_table(200)}")
