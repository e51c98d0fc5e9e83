"""Ranks that are slow rather than stuck: how long each works, and a word when one keeps the others waiting."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence

import torch

from engine.device import Device
from engine.flight.recorder import FLIGHT

_WINDOW = 10  # steps whose median counts
_REMIND = 100  # steps before the same rank is named again


class BusyClock:
    """How long this rank works, the time that it waits for others left out. Never waits for the device itself.

    On a CPU that is all time outside of collectives. On a GPU the host runs ahead and collectives are kernels too:
    there it is the device's time in forward passes, which includes collectives over tp only.
    """

    def __init__(self, device: Device) -> None:
        self._is_cuda = device.backend == "nccl"  # and not fake tensors, which have no events
        self._since, self._waited_s = time.perf_counter(), FLIGHT.waited_s
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Count what the device does meanwhile as work."""
        if not self._is_cuda:
            yield
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._events.append((begin, end))

    def lap(self) -> float:
        """Return the seconds of work since the last call; of a GPU, those of it that are known to be over."""
        if self._is_cuda:
            over = [pair for pair in self._events if pair[1].query()]
            self._events = self._events[len(over) :]
            return sum(begin.elapsed_time(end) for begin, end in over) * 1e-3
        now, waited_s = time.perf_counter(), FLIGHT.waited_s
        busy = now - self._since - (waited_s - self._waited_s)
        self._since, self._waited_s = now, waited_s
        return max(0.0, busy)


class Stragglers:
    """Judges the times of all ranks, step by step; `factor` 0 judges nothing. Pure, and equal on all ranks."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self._recent: deque[Sequence[float]] = deque(maxlen=_WINDOW)
        self._named: dict[int, int] = {}  # rank: steps since
        self._steps = 0

    def observe(self, busy_s: Sequence[float]) -> str | None:
        """Take in the seconds each rank worked in a step; return a line on one that is consistently slower."""
        self._steps += 1
        self._recent.append(busy_s)
        if self.factor == 0 or len(busy_s) < 2 or len(self._recent) < _WINDOW:
            return None
        medians = [statistics.median(steps) for steps in zip(*self._recent, strict=True)]
        slowest = max(range(len(medians)), key=medians.__getitem__)
        others = statistics.median(medians[:slowest] + medians[slowest + 1 :])
        if medians[slowest] <= self.factor * others or others <= 0:
            return None
        if self._steps - self._named.get(slowest, -_REMIND) < _REMIND:
            return None
        self._named[slowest] = self._steps
        return (
            f"rank {slowest} is slow: it works {medians[slowest] / others:.1f} times as long as the others do "
            f"({medians[slowest]:.3g} s a step and {others:.3g} s, medians of {_WINDOW} steps)"
        )
