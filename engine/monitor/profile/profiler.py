"""Profiles the steps that `profile.steps` names: a trace by every rank, then a summary by the one that writes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from engine.device import Device
from engine.flight.recorder import FLIGHT
from engine.mesh import Mesh
from engine.monitor.profile.kernels import read_kernels
from engine.monitor.profile.summary import FOLDER, Summary
from engine.monitor.step_parts import PARTS
from engine.parallel.collectives import all_reduce


class Profiler:
    """Traces steps first to last of `steps`, once; None: nothing. All ranks call its methods together."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path, mesh: Mesh, device: Device) -> None:
        self._steps, self._folder, self._mesh, self._device = steps, folder, mesh, device
        self._profile: profile | None = None
        self._first, self._seconds, self._parts = 0, 0.0, dict.fromkeys(PARTS, 0.0)
        self._range: record_function | None = None

    @contextlib.contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Trace step `step`, counted from 1, where its turn has come."""
        if self._steps is None or not self._steps[0] <= step <= self._steps[1]:
            yield
            return
        if self._profile is None:
            self._first, self._profile = step, self._start()
        others = FLIGHT.listener
        thread = threading.get_ident()

        def on_phase(name: str, at: int) -> None:
            if threading.get_ident() == thread:
                self._enter(name)
            if others is not None:
                others(name, at)

        FLIGHT.listener = on_phase
        try:
            yield
        finally:
            FLIGHT.listener = others
            self._enter(None)

    def add(self, seconds: float, parts: Mapping[str, float]) -> None:
        """Take in the time of a step, and its parts as the host knows them; nothing while no step is traced."""
        if self._profile is not None:
            self._seconds += seconds
            self._parts = {part: self._parts[part] + parts[part] for part in PARTS}

    def finish(self, step: int) -> tuple[Summary | None, str | None]:
        """After the last step: write the trace, and return the summary of all ranks, and what went wrong, if anything.

        The summary is written by the first rank; None, None while there is more to come.
        """
        if self._profile is None or self._steps is None or step < self._steps[1]:
            return None, None
        traced, self._profile, self._steps = self._profile, None, None
        self._device.synchronize()
        traced.stop()
        world, trouble = self._mesh.world, None
        path = self._folder / FOLDER / f"rank-{world.rank:05d}.json"
        try:
            path.parent.mkdir(exist_ok=True)
            traced.export_chrome_trace(str(path))
            if self._device.is_cuda:
                pipelined = self._mesh.pp.size > 1
                self._parts = read_kernels(path, pipelined=pipelined) or self._parts
        except (OSError, RuntimeError, ValueError) as error:  # a full disk costs the trace, not the run
            trouble = f"the trace of the profiler cannot be written: {error}"
        summary = self._gather(step)
        if world.is_first:
            try:
                summary.write(self._folder)
            except OSError as error:
                trouble = trouble or f"the summary of the profiler cannot be written: {error}"
        return summary, trouble

    def close(self) -> None:
        """End a trace whose last step never came."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _start(self) -> profile:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._device.is_cuda else [])]
        started = profile(activities=activities)
        started.start()
        return started

    def _enter(self, name: str | None) -> None:
        """Name what comes now in the trace."""
        if self._range is not None:
            self._range.__exit__(None, None, None)
        self._range = None if name is None else record_function(name)
        if self._range is not None:
            self._range.__enter__()

    def _gather(self, last: int) -> Summary:
        world, device = self._mesh.world, self._device.torch_device
        table = torch.zeros(world.size, 1 + len(PARTS), dtype=torch.float64, device=device)
        mine = [self._seconds, *(self._parts[part] for part in PARTS)]
        table[world.rank] = torch.tensor(mine, dtype=torch.float64, device=device)
        all_reduce(table, world)
        rows = table.tolist()
        parts = [dict(zip(PARTS, row[1:], strict=True)) for row in rows]
        return Summary(self._first, last, [row[0] for row in rows], parts)
