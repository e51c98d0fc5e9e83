"""Whether the machines of a run compute right: suspicious steps once more, and copies of weights side by side."""

from __future__ import annotations

import math
from collections.abc import Callable

from engine.config import Config
from engine.data.batch import MicroBatch
from engine.guard import Guard
from engine.mesh import Mesh
from engine.monitor.metrics import WARN
from engine.monitor.monitor import Monitor
from engine.monitor.pipeline_times import PipelineTimes
from engine.parallel.drift import drifted_ranks
from engine.recheck import recheck
from engine.stability.signals import DRIFT, ROLLBACK, Verdict
from engine.step import Gradients, Stepper, StepValues


class Machines:
    """Makes steps, and finds what no data can be blamed for. All ranks call its methods together."""

    def __init__(self, config: Config, mesh: Mesh, stepper: Stepper, guard: Guard, monitor: Monitor) -> None:
        self.policy, self.mesh, self.stepper, self.guard, self.monitor = config.stability, mesh, stepper, guard, monitor
        self.last_equal = 0  # the newest step at which copies of weights were found to be equal

    def make_step(
        self, step: int, micro_batches: list[MicroBatch], lr: float, clip: float, scale: float, *,
        scaled: bool, stop: bool, times: PipelineTimes,
    ) -> StepValues:  # fmt: skip
        """Run a step, twice where it is suspicious or its turn has come: bits that differ are a machine's fault.

        `clip` multiplies the clipping norm, `scale` the loss; `scaled` says that it is a dynamic scale.
        """
        policy, limits = self.policy, self.guard.limits()

        def execute() -> Gradients:
            return self.stepper.gradients(step, micro_batches, scale, stop)

        times.begin(step)
        gradients = execute()
        times.end(step)
        turn = policy.recheck_interval and step % policy.recheck_interval == 0
        if turn:
            gradients = self._recheck(step, gradients, execute)
        values = self.stepper.update(gradients, lr, limits, clip).read()
        overflowed = scaled and math.isfinite(values.loss) and not math.isfinite(values.grad_norm)
        if values.applied or turn or not (policy.watch and policy.rerun) or overflowed:
            return values
        return self.stepper.update(self._recheck(step, gradients, execute), lr, limits, clip).read()

    def _recheck(self, step: int, first: Gradients, execute: Callable[[], Gradients]) -> Gradients:
        mesh = self.mesh
        gradients, finding = recheck(first, self.stepper.buckets.fingerprint, execute, mesh.world, mesh.dp)
        if not finding.agree:
            self.guard.note({"fault": "differs", "step": step, "ranks": list(finding.ranks)})
            self.monitor.event(f"step {step}: {finding.describe()}", WARN)
        return gradients

    def comparison_is_due(self, step: int) -> bool:
        """Say whether copies of weights are to be compared before trained step `step`."""
        policy = self.policy
        wanted = policy.watch and policy.drift_interval and step % policy.drift_interval == 0
        return bool(wanted) and step != self.last_equal

    def find_drift(self, step: int) -> Verdict | None:
        """Compare copies of weights; where they differ, return the verdict that goes back to when they did not."""
        weights = [weight for chunk in self.stepper.chunks for weight in chunk.parameters()]
        ranks = drifted_ranks(weights, self.mesh) if self.policy.drift_interval else ()
        if not ranks:
            self.last_equal = step
            return None
        who = " and ".join(f"rank {rank}" for rank in ranks)
        return Verdict(ROLLBACK, DRIFT, self.last_equal, f"{who} hold other copies of weights than their peers")
