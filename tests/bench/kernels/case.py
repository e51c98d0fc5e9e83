"""A kernel to be timed, its peers, and how long the machine needs for it at least."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from tests.bench.pairs import Plan
from tests.bench.table import Row, seconds

Run = Callable[[], object]
COLUMNS = ("kernel, forward and backward", "Trimaran", "of the limit", "torch eager", "ratio", "torch.compile", "ratio")


@dataclass(frozen=True)
class Limits:
    """What the machine does at best: bytes per second of a copy (read and written), operations per second of a GEMM."""

    bytes_per_s: float
    flops_per_s: float

    @classmethod
    def measure(cls) -> Limits:
        source, target = torch.ones(64 << 20), torch.empty(64 << 20)
        a, b = torch.ones(2048, 1024), torch.ones(1024, 2048)
        copy_s, gemm_s = (min(_time(run) for _ in range(5)) for run in (lambda: target.copy_(source), lambda: a @ b))
        return cls(2 * source.nbytes / copy_s, 2 * 2048 * 2048 * 1024 / gemm_s)


@dataclass(frozen=True)
class Case:
    """`ours` against several eager forms, of which the fastest counts, and a compiled one.

    `moved` bytes and `operations` are the least that forward and backward need; whichever takes longer is the limit.
    """

    name: str
    ours: Run
    eager: Mapping[str, Run]
    compiled: Run | None = None
    moved: int = 0
    operations: int = 0

    def measure(self, plan: Plan, limits: Limits) -> Row:
        """Time all forms in turns; ratios are medians over the turns."""
        forms: dict[str, Run] = {"ours": self.ours, **self.eager}
        if self.compiled is not None:
            forms["torch.compile"] = self.compiled
        for _ in range(max(2, plan.warmup)):
            for run in forms.values():
                run()
        samples: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(plan.pairs):
            for name, run in forms.items():
                samples[name].append(_time(run, plan.steps))
        best = min(self.eager, key=lambda name: statistics.median(samples[name]))
        ours = statistics.median(samples["ours"])
        limit = max(self.moved / limits.bytes_per_s, self.operations / limits.flops_per_s)
        cells = [self.name, seconds(ours), f"{limit / ours:.0%}"]
        for name, label in ((best, f" ({best})"), ("torch.compile", "")):
            if name not in samples:
                cells += ["", ""]
                continue
            ratio = statistics.median(b / a for a, b in zip(samples["ours"], samples[name], strict=True))
            cells += [seconds(statistics.median(samples[name])) + label, f"{ratio:.2f}"]
        return Row(*cells)


def _time(run: Run, repeats: int = 1) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - begin) / repeats
