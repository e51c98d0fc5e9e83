"""Loss spikes: single outliers are not updated with, several within a few steps are rolled back.

BLOOM-176B's gradient norm alarmed four steps before its loss blew up, so both are watched. Outliers never enter the
statistics: a NaN or a spike that did would blind or deafen the detector for a whole window, as mean-and-deviation
rules are.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from engine.stability.baseline import Baseline
from engine.stability.signals import OK, ROLLBACK, SKIP, Limits, Signals, Verdict

LOSS, NORM = "loss", "log_grad_norm"
_TIMES = "times"  # in evidence: how often a rollback was asked for at this level, this time included
_TIMES_OF_LOSS, _TIMES_OF_BOTH = 1, 2  # rollbacks before a level that returns is accepted


@dataclass(frozen=True)
class _Odd:
    """A step above normal: the signals that were, and whether far enough to be an outlier by itself."""

    is_outlier: bool
    high: dict[str, float]

    @property
    def is_mere_norm(self) -> bool:
        """Say whether nothing but the gradient norm was odd, and not by far."""
        return not self.is_outlier and self.high.keys() == {NORM}


@dataclass
class _Known:
    """The level of a spike that was rolled back: should it come back, and stay, it is no spike."""

    levels: dict[str, float] = field(default_factory=dict)
    times: int = 0
    until: int = -1  # trained steps after which it is forgotten
    returned: list[list[float]] = field(default_factory=list)  # [loss, log norm] of the steps at that level

    @property
    def may_be_accepted(self) -> bool:
        """A loss that is higher while gradients are as ever is other data; both together may be poison: try twice."""
        return bool(self.levels) and self.times >= (_TIMES_OF_BOTH if NORM in self.levels else _TIMES_OF_LOSS)


class Spike:
    """Robust z-scores of the loss and of the logarithm of the gradient norm over the last accepted steps.

    A step is odd when it is more than `z_row` robust deviations above the normal level of the last `window` accepted
    steps, and an outlier from `z` on; in either case at least `loss_excess` nats or a factor of `norm_ratio` above.
    A gradient norm alone makes an outlier only from `norm_far` times the normal one on: a lesser gradient is clipped,
    and its update leads out of the steep place that a skipped one would stay in.
    Nothing is odd before `warm` steps are known. One outlier is skipped; `alarms` outliers (or non-finite steps)
    within `span` steps ask for a rollback, or as many odd steps in a row, or `norm_alarms` in a row that show in
    nothing but a gradient norm that is not far off. Nothing is judged or learned for `freeze` steps after the
    start, and after what the trainer says (`hold`).

    A spike's level that returns after a rollback and lasts for `settle` steps is accepted as the new normal; it is
    remembered for a window after the spike. What makes an eighth of a window's steps odd without ever asking for a
    rollback, such as batches from another source, would be skipped forever: it widens what is normal, for good.
    """

    def __init__(
        self,
        *,
        window: int = 128,
        warm: int = 64,
        z: float = 8.0,
        z_row: float = 5.0,
        loss_excess: float = 0.1,
        norm_ratio: float = 2.0,
        norm_far: float = 16.0,
        alarms: int = 3,
        norm_alarms: int = 6,
        span: int = 8,
        freeze: int = 16,
        settle: int = 16,
    ) -> None:
        self.window, self.z, self.z_row, self.alarms, self.settle = window, z, z_row, alarms, settle
        self._loss = Baseline(window, warm, loss_excess)
        self._norm = Baseline(window, warm, math.log(norm_ratio))
        self._far, self.norm_alarms = math.log(norm_far), norm_alarms
        self.span = span
        self._steps: deque[_Odd | None] = deque(maxlen=window)  # None for a normal one
        self._onset = -1  # first odd step of the present spike
        self._frozen = freeze
        self._known = _Known()

    # -- before the step -------------------------------------------------------------------------------------

    def limits(self) -> Limits:
        """Return what the next step is held to; a level that may be accepted is let pass."""
        if self._frozen:
            return Limits()
        loss, norm = self._loss.limit(self.z), max(self._norm.limit(self.z), self._norm.level() + self._far)
        if self._known.may_be_accepted:
            loss = max(loss, self._known.levels.get(LOSS, -math.inf) + self._loss.width(self.z))
            norm = max(norm, self._known.levels.get(NORM, -math.inf) + self._norm.width(self.z))
        return Limits.rounded(loss, math.exp(norm) if norm < 700.0 else math.inf)

    # -- after the step --------------------------------------------------------------------------------------

    def observe(self, signals: Signals) -> Verdict:
        """Judge a step: skip or roll back when `limits` does not admit it; roll back also a row of odd steps."""
        verdict = self._observe(signals)
        if signals.step >= self._known.until:
            self._known = _Known()
        return verdict

    def _observe(self, signals: Signals) -> Verdict:
        if self._frozen:
            self._frozen -= 1
            return Verdict() if signals.finite else Verdict(SKIP, "nonfinite", signals.step, "not finite")
        limits, high = self.limits(), self._high(signals)
        is_outlier = not limits.admit(signals)
        if not is_outlier and high and self._known.may_be_accepted:
            return self._back_again(signals)
        if not is_outlier and not high:
            self._steps.append(None)
            self._loss.accept(signals.loss)
            self._norm.accept(_log(signals.grad_norm))
            return Verdict()
        self._steps.append(_Odd(is_outlier, high))
        if not any(self._recent[:-1]):
            self._onset = signals.step
        return self._judge(signals, limits, is_outlier)

    def _high(self, signals: Signals) -> dict[str, float]:
        """Return the signals that are odd."""
        if not signals.finite:
            return {}
        values = ((LOSS, signals.loss, self._loss), (NORM, _log(signals.grad_norm), self._norm))
        return {name: value for name, value, baseline in values if value > baseline.limit(self.z_row)}

    @property
    def _recent(self) -> list[_Odd | None]:
        """The last `span` steps."""
        return list(self._steps)[-self.span :]

    def _judge(self, signals: Signals, limits: Limits, is_outlier: bool) -> Verdict:
        """Return what an odd step calls for, together with those before it."""
        what = _describe(signals, limits)
        cause = "spike" if signals.finite else "nonfinite"
        recent = self._recent
        outliers, row = sum(odd is not None and odd.is_outlier for odd in recent), self._row()
        if outliers >= self.alarms:
            reason = f"{outliers} outliers in {len(recent)} steps, {what}"
            return Verdict(ROLLBACK, cause, self._onset, reason, self._evidence())
        needed = self.norm_alarms if all(odd.is_mere_norm for odd in row[-self.alarms :]) else self.alarms
        if len(row) >= needed:
            return Verdict(ROLLBACK, cause, self._onset, f"{len(row)} odd steps in a row, {what}", self._evidence())
        if sum(odd is not None and bool(odd.high) for odd in self._steps) >= self.window // 8:
            self._widen()
            reason = f"an eighth of all steps were odd, now normal: {what}"
            return Verdict(SKIP if is_outlier else OK, "level", signals.step, reason)
        return Verdict(SKIP, cause, self._onset, what) if is_outlier else Verdict()

    def _row(self) -> list[_Odd]:
        """Return the odd steps that end with this one, with no normal step between them."""
        row: list[_Odd] = []
        for odd in reversed(self._steps):
            if odd is None:
                break
            row.insert(0, odd)
        return row

    def _high_levels(self, steps: Iterable[_Odd | None]) -> dict[str, float]:
        """Return the median of each signal that most of the odd ones of `steps` show."""
        odd = [step for step in steps if step is not None]
        levels: dict[str, float] = {}
        for name in (LOSS, NORM):
            values = [step.high[name] for step in odd if name in step.high]
            if 2 * len(values) > len(odd):
                levels[name] = median(values)
        return levels

    def _evidence(self) -> dict[str, float]:
        """Return the level of the present spike, of the signals that most of its steps show, and how often it was."""
        levels = self._high_levels(self._recent)
        known, baselines = self._known.levels, {LOSS: self._loss, NORM: self._norm}
        again = levels.keys() == known.keys() and all(
            abs(level - known[name]) <= baselines[name].width(self.z) for name, level in levels.items()
        )
        return {**levels, _TIMES: self._known.times + 1 if again else 1}

    def _back_again(self, signals: Signals) -> Verdict:
        """Take up a step at the level that was rolled back before; accept that level when it stays."""
        self._steps.append(None)
        returned = self._known.returned
        returned.append([signals.loss, _log(signals.grad_norm)])
        if len(returned) < self.settle:
            return Verdict()
        self._loss.move([loss for loss, _ in returned])
        self._norm.move([norm for _, norm in returned])
        self._known = _Known()
        return Verdict(OK, "level", reason=f"the level of loss {signals.loss:.4g} is back after a rollback: accepted")

    def _widen(self) -> None:
        """Take the odd steps of the window for a part of what is normal."""
        baselines = {LOSS: self._loss, NORM: self._norm}
        for name, level in self._high_levels(self._steps).items():
            baselines[name].widen(level, self.z)
        self._steps.clear()

    # -- what the trainer tells ------------------------------------------------------------------------------

    def hold(self, steps: int) -> None:
        """Neither judge nor learn for `steps` steps: a learning-rate warm-up begins, or states were restored."""
        self._frozen = max(self._frozen, steps)

    def returned(self, onset: int, evidence: dict[str, float]) -> None:
        """Remember, after a rollback, the level that asked for it; forget the spike itself."""
        levels = {name: evidence[name] for name in (LOSS, NORM) if name in evidence}
        self._known = _Known(levels, int(evidence.get(_TIMES, 0)), onset + self.window)
        self._steps.clear()

    def state(self) -> dict[str, Any]:
        """Return everything there is to know, as JSON values."""
        return {
            "loss": list(self._loss.values), "norm": list(self._norm.values),
            "excess": [self._loss.excess, self._norm.excess],
            "steps": [odd and asdict(odd) for odd in self._steps], "onset": self._onset, "frozen": self._frozen,
            "known": asdict(self._known),
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._loss.replace(state["loss"])
        self._norm.replace(state["norm"])
        self._loss.excess, self._norm.excess = state["excess"]
        self._steps.clear()
        self._steps.extend(_Odd(**odd) if odd else None for odd in state["steps"])
        self._onset, self._frozen = int(state["onset"]), int(state["frozen"])
        known = _Known(**state["known"])
        self._known = _Known(dict(known.levels), known.times, known.until, [list(pair) for pair in known.returned])


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-30))  # a gradient of exactly zero is small, not an error


def _describe(signals: Signals, limits: Limits) -> str:
    if not signals.finite:
        return "loss or gradients not finite"
    return (
        f"loss {signals.loss:.4g} (limit {limits.loss:.4g}), gradient norm {signals.grad_norm:.4g} "
        f"(limit {limits.grad_norm:.4g})"
    )
