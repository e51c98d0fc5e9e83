"""A run that gets worse so slowly that no single step stands out."""

from __future__ import annotations

import math

from engine.stability.signals import ROLLBACK, Signals, Verdict


class SlowDivergence:
    """Rolls back when the smoothed loss stayed above its best by `margin` nats for `patience` steps.

    The smoothing is an exponential mean over about `span` steps, corrected for its start. The onset is the step of
    the best: what went wrong did so after it. Where the smoothed loss comes back to the same height after a
    rollback, that height is accepted: data of another kind, and nothing to fight.
    """

    def __init__(self, span: int = 200, margin: float = 0.3, patience: int = 200) -> None:
        self.span, self.margin, self.patience = span, margin, patience
        self._mean, self._weight = 0.0, 0.0
        self._count, self._above = 0, 0  # values seen, and steps in a row above best + margin
        self._best, self._best_step = math.inf, -1
        self._known = -math.inf  # the height at which a rollback was asked for

    def observe(self, signals: Signals) -> Verdict:
        """Judge a step whose loss was found normal."""
        keep = 1.0 - 1.0 / self.span
        self._mean = keep * self._mean + (1.0 - keep) * signals.loss
        self._weight = keep * self._weight + (1.0 - keep)
        self._count += 1
        smoothed = self._mean / self._weight
        if self._count < self.span:
            return Verdict()
        if smoothed < self._best:
            self._best, self._best_step = smoothed, signals.step
        self._above = self._above + 1 if smoothed > self._best + self.margin else 0
        if self._above < self.patience:
            return Verdict()
        if smoothed <= self._known + self.margin / 2:
            self.rebase()
            return Verdict(cause="level", reason=f"the smoothed loss {smoothed:.4g} is back after a rollback: accepted")
        reason = f"smoothed loss {smoothed:.4g} above its best {self._best:.4g} for {self._above} steps"
        return Verdict(ROLLBACK, "slow", self._best_step, reason, {"smoothed": smoothed})

    def rebase(self) -> None:
        """Forget the best, where the loss has good reason to be higher from here."""
        self._mean, self._weight, self._count, self._above = 0.0, 0.0, 0, 0
        self._best, self._best_step = math.inf, -1

    def returned(self, evidence: dict[str, float]) -> None:
        """Remember, after a rollback, at which height it was asked for."""
        self._above = 0
        self._known = max(self._known, evidence.get("smoothed", -math.inf))

    def state(self) -> dict[str, float | None]:
        """Return everything there is to know, as JSON values."""
        return {
            "mean": self._mean, "weight": self._weight, "count": self._count, "above": self._above,
            "best": self._best if math.isfinite(self._best) else None, "best_step": self._best_step,
            "known": self._known if math.isfinite(self._known) else None,
        }  # fmt: skip

    def load(self, state: dict[str, float | None]) -> None:
        """Go on from what `state` returned."""

        def number(key: str, missing: float = 0.0) -> float:
            value = state[key]
            return missing if value is None else float(value)

        self._mean, self._weight = number("mean"), number("weight")
        self._count, self._above = int(number("count")), int(number("above"))
        self._best, self._best_step = number("best", math.inf), int(number("best_step"))
        self._known = number("known", -math.inf)
