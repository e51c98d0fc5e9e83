"""Loss spikes: single outliers are not updated with, several within a few steps are rolled back.

BLOOM-176B's gradient norm alarmed four steps before its loss blew up, so both are watched. Outliers never enter the
statistics: a NaN or a spike that did would blind or deafen the detector for a whole window, as mean-and-deviation
rules are.
"""

from __future__ import annotations

import math
from collections import deque
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
    Nothing is odd before `warm` steps are known. One outlier is skipped; `alarms` outliers (or non-finite steps)
    within `span` steps, or as many odd steps in a row, ask for a rollback. Nothing is judged or learned for `freeze`
    steps after the start, and after what the trainer says (`hold`).

    A spike's level that returns after a rollback and lasts for `settle` steps is accepted as the new normal; it is
    remembered for a window after the spike. So is whatever makes a quarter of the window's steps odd without ever
    asking for a rollback: it would be passed over forever.
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
        alarms: int = 3,
        span: int = 8,
        freeze: int = 16,
        settle: int = 16,
    ) -> None:
        self.window, self.z, self.z_row, self.alarms, self.settle = window, z, z_row, alarms, settle
        self._loss = Baseline(window, warm, loss_excess)
        self._norm = Baseline(window, warm, math.log(norm_ratio))
        self._recent: deque[_Odd | None] = deque(maxlen=span)
        self._marks: deque[int] = deque(maxlen=window)  # 1 for an odd step, 0 for a normal one
        self._onset = -1  # first odd step of the present spike
        self._frozen = freeze
        self._known = _Known()

    # -- before the step -------------------------------------------------------------------------------------

    def limits(self) -> Limits:
        """Return what the next step is held to; a level that may be accepted is let pass."""
        if self._frozen:
            return Limits()
        loss, norm = self._loss.limit(self.z), self._norm.limit(self.z)
        if self._known.may_be_accepted:
            loss = max(loss, self._known.levels.get(LOSS, -math.inf) + self._loss.width(self.z))
            norm = max(norm, self._known.levels.get(NORM, -math.inf) + self._norm.width(self.z))
        return Limits.rounded(loss, math.exp(norm) if norm < 700.0 else math.inf)

    # -- after the step --------------------------------------------------------------------------------------

    def observe(self, signals: Signals) -> Verdict:
        """Judge a step: skip or roll back when `limits` does not admit it; roll back also a row of odd steps."""
        if signals.step > self._known.until:
            self._known = _Known()
        if self._frozen:
            self._frozen -= 1
            return Verdict() if signals.finite else Verdict(SKIP, "nonfinite", signals.step, "not finite")
        limits, high = self.limits(), self._high(signals)
        is_outlier = not limits.admit(signals)
        if not is_outlier and high and self._known.may_be_accepted:
            return self._back_again(signals)
        if not is_outlier and not high:
            self._note(None)
            self._loss.accept(signals.loss)
            self._norm.accept(_log(signals.grad_norm))
            return Verdict()
        if not any(self._recent):
            self._onset = signals.step
        self._note(_Odd(is_outlier, high))
        return self._judge(signals, limits, is_outlier)

    def _high(self, signals: Signals) -> dict[str, float]:
        """Return the signals that are odd."""
        if not signals.finite:
            return {}
        values = ((LOSS, signals.loss, self._loss), (NORM, _log(signals.grad_norm), self._norm))
        return {name: value for name, value, baseline in values if value > baseline.limit(self.z_row)}

    def _note(self, odd: _Odd | None) -> None:
        self._recent.append(odd)
        self._marks.append(int(odd is not None))

    def _judge(self, signals: Signals, limits: Limits, is_outlier: bool) -> Verdict:
        """Return what an odd step calls for, together with those before it."""
        what = _describe(signals, limits)
        cause = "spike" if signals.finite else "nonfinite"
        outliers = sum(odd is not None and odd.is_outlier for odd in self._recent)
        row = list(self._recent)[-self.alarms :]
        if outliers >= self.alarms:
            reason = f"{outliers} outliers in {len(self._recent)} steps, {what}"
            return Verdict(ROLLBACK, cause, self._onset, reason, self._evidence())
        if len(row) == self.alarms and all(row):
            return Verdict(ROLLBACK, cause, self._onset, f"{len(row)} odd steps in a row, {what}", self._evidence())
        kind = SKIP if is_outlier else OK
        if sum(self._marks) > self.window // 4:
            self._learn_anew()
            return Verdict(kind, "level", signals.step, f"a quarter of all steps were odd, now normal: {what}")
        return Verdict(SKIP, cause, self._onset, what) if is_outlier else Verdict()

    def _evidence(self) -> dict[str, float]:
        """Return the level of the present spike, of the signals that most of its steps show, and how often it was."""
        odd = [step for step in self._recent if step is not None]
        levels: dict[str, float] = {}
        again = True
        for name, baseline in ((LOSS, self._loss), (NORM, self._norm)):
            values = [step.high[name] for step in odd if name in step.high]
            known = self._known.levels.get(name)
            if 2 * len(values) > len(odd):
                levels[name] = median(values)
                again &= known is not None and abs(levels[name] - known) <= baseline.width(self.z)
            else:
                again &= known is None
        return {**levels, _TIMES: self._known.times + 1 if again else 1}

    def _back_again(self, signals: Signals) -> Verdict:
        """Take up a step at the level that was rolled back before; accept that level when it stays."""
        self._note(None)
        returned = self._known.returned
        returned.append([signals.loss, _log(signals.grad_norm)])
        if len(returned) < self.settle:
            return Verdict()
        self._loss.move([loss for loss, _ in returned])
        self._norm.move([norm for _, norm in returned])
        self._known = _Known()
        return Verdict(OK, "level", reason=f"the level of loss {signals.loss:.4g} is back after a rollback: accepted")

    def _learn_anew(self) -> None:
        self._loss.replace([])
        self._norm.replace([])
        self._recent.clear()
        self._marks.clear()

    # -- what the trainer tells ------------------------------------------------------------------------------

    def hold(self, steps: int) -> None:
        """Neither judge nor learn for `steps` steps: a learning-rate warm-up begins, or states were restored."""
        self._frozen = max(self._frozen, steps)

    def returned(self, onset: int, evidence: dict[str, float]) -> None:
        """Remember, after a rollback, the level that asked for it; forget the spike itself."""
        levels = {name: evidence[name] for name in (LOSS, NORM) if name in evidence}
        self._known = _Known(levels, int(evidence.get(_TIMES, 0)), onset + self.window)
        self._recent.clear()
        self._marks.clear()

    def state(self) -> dict[str, Any]:
        """Return everything there is to know, as JSON values."""
        return {
            "loss": list(self._loss.values), "norm": list(self._norm.values), "marks": list(self._marks),
            "recent": [odd and asdict(odd) for odd in self._recent], "onset": self._onset, "frozen": self._frozen,
            "known": asdict(self._known),
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._loss.replace(state["loss"])
        self._norm.replace(state["norm"])
        self._recent.clear()
        self._recent.extend(_Odd(**odd) if odd else None for odd in state["recent"])
        self._marks.clear()
        self._marks.extend(state["marks"])
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
