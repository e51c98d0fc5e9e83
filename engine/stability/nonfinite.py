"""NaN and infinity: such a step is never updated with, and a run of them is not waited out."""

from __future__ import annotations

from engine.stability.signals import ROLLBACK, SKIP, Signals, Verdict


class NonFinite:
    """Skips a non-finite step, rolls back at the `streak`-th in a row.

    Overflows of fp16 gradients under a dynamic loss scale are ordinary while the scale is searched for, so they are
    counted apart: a search that starts at 2^16 and halves `overflow_streak` = 12 times in a row has found nothing
    down to 2^4, and is a storm.
    """

    def __init__(self, streak: int = 2, overflow_streak: int = 12) -> None:
        self.streak, self.overflow_streak = streak, overflow_streak
        self._steps: list[int] = []  # of the present row of non-finite steps, overflows included
        self._faults = 0  # of them, those that are no overflows

    def observe(self, signals: Signals) -> Verdict:
        """Judge a step."""
        if signals.finite:
            self._steps, self._faults = [], 0
            return Verdict()
        self._steps.append(signals.step)
        self._faults += not signals.overflowed
        cause = "overflow" if signals.overflowed else "nonfinite"
        count = len(self._steps)
        what = "fp16 overflow" if self._faults == 0 else "loss or gradients not finite"
        if self._faults >= self.streak or count >= self.overflow_streak:
            return Verdict(ROLLBACK, cause, self._steps[0], f"{what} {count} steps in a row")
        return Verdict(SKIP, cause, self._steps[0], what)

    def restart(self) -> None:
        """Forget the present row, after a rollback."""
        self._steps, self._faults = [], 0

    def state(self) -> dict[str, object]:
        """Return everything there is to know, as JSON values."""
        return {"steps": list(self._steps), "faults": self._faults}

    def load(self, state: dict[str, object]) -> None:
        """Go on from what `state` returned."""
        self._steps = [int(step) for step in state["steps"]]  # type: ignore[attr-defined]
        self._faults = int(state["faults"])  # type: ignore[call-overload]
