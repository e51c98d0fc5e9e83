"""All detectors of a run as one: bounds before each step, a verdict after it, one state for the checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine.config import StabilityConfig
from engine.stability.nonfinite import NonFinite
from engine.stability.signals import OK, ROLLBACK, SKIP, Limits, Signals, Verdict, gravest
from engine.stability.slow import SlowDivergence
from engine.stability.spike import Spike


class Watch:
    """Pure and equal on every rank that is told the same signals."""

    def __init__(self, policy: StabilityConfig) -> None:
        self.policy = policy
        self.nonfinite = NonFinite(policy.nonfinite_streak, policy.overflow_streak)
        self.spike = Spike(
            window=policy.window, warm=policy.warm, z=policy.z, z_row=policy.z_row, loss_excess=policy.loss_excess,
            norm_ratio=policy.norm_ratio, norm_far=policy.norm_far, alarms=policy.alarms,
            norm_alarms=policy.norm_alarms, span=policy.span, freeze=policy.hold_start, settle=policy.settle,
        )  # fmt: skip
        self.slow = SlowDivergence(policy.slow_span, policy.slow_margin, policy.slow_patience)

    def limits(self) -> Limits:
        """Return what the next step is held to, so that a device can withhold its update without asking."""
        return self.spike.limits() if self.policy.watch and self.policy.skip_update else Limits()

    def observe(self, signals: Signals) -> Verdict:
        """Judge a step that was made under `limits`; skip says that its update was not made.

        With skip_update off an outlier's verdict is ok, with the cause and reason that it has otherwise.
        """
        if not self.policy.watch:
            return Verdict() if signals.finite else Verdict(SKIP, "nonfinite", signals.step, "not finite")
        verdict = self.nonfinite.observe(signals)
        if signals.overflowed:
            return verdict
        outlier = self.spike.observe(signals)
        verdict = gravest(verdict, outlier) if not signals.finite else outlier
        if outlier.cause == "level":
            self.slow.rebase()
        elif outlier.kind == OK:
            verdict = self.slow.observe(signals)
        if verdict.kind == SKIP and signals.finite and not self.policy.skip_update:
            verdict = replace(verdict, kind=OK)
        return verdict

    def warm_up_begins(self) -> None:
        """Do not judge the first steps of a learning-rate warm-up that comes in the middle of a run."""
        self.spike.hold(self.policy.hold_warmup)
        self.slow.rebase()

    def rolled_back(self, verdict: Verdict) -> None:
        """After `load` of an earlier state: tell why, so that what returns unchanged is not fought forever."""
        if verdict.kind != ROLLBACK:
            raise ValueError(f"a verdict of {verdict.kind} rolls nothing back")
        self.nonfinite.restart()
        self.spike.hold(self.policy.hold_rollback)
        self.spike.returned(verdict.onset, verdict.evidence)
        self.slow.returned(verdict.evidence)

    def state(self) -> dict[str, Any]:
        """Return all there is to know, as JSON values."""
        return {"nonfinite": self.nonfinite.state(), "spike": self.spike.state(), "slow": self.slow.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.nonfinite.load(state["nonfinite"])
        self.spike.load(state["spike"])
        self.slow.load(state["slow"])
