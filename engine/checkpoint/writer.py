"""Saving without stopping: copy the state to host memory, then write, verify and commit it in the background.

A save is whole when rank 0 has renamed its folder; what goes wrong before that is reported, never raised into
the training, and leaves older checkpoints as they are.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch.distributed import Store

from engine.checkpoint import folder as folders
from engine.checkpoint.entry import Entry
from engine.checkpoint.exchange import Exchange
from engine.checkpoint.shard import Shard, Snapshot
from engine.errors import CheckpointError
from engine.flight import phases
from engine.flight.recorder import FLIGHT

_MARGIN = 1.2  # free space wanted before a save, in checkpoints


@dataclass(frozen=True)
class SaveResult:
    """How a save ended: `bytes` of all ranks' files, `seconds` to the end, `stall_s` of it kept from training.

    `error` is one line, None for a checkpoint that is whole and whose predecessors could be pruned.
    """

    step: int
    ok: bool
    error: str | None
    bytes: int
    seconds: float
    stall_s: float
    path: Path


@dataclass
class _Job:
    """A save on its way."""

    step: int
    turn: int
    begin: float = field(default_factory=time.perf_counter)
    meta: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None
    stall_s: float = 0.0


@dataclass(frozen=True)
class _Verdict:
    """Rank 0's word on a save, sent to all."""

    ok: bool
    error: str | None
    bytes: int


class CheckpointWriter:
    """Writes the checkpoints of a run into `folder`; every rank has one, made and used in the same order.

    `store`: the process group's store. `keep_last`: newest checkpoints kept; `keep_every`: kept besides are
    those whose step is a multiple of it (0: none). `patience_s`: how long to wait for other ranks' parts.
    """

    def __init__(
        self, folder: Path, *, rank: int, world: int, store: Store, keep_last: int, keep_every: int,
        asynchronous: bool = True, patience_s: float = 1800.0,
    ) -> None:  # fmt: skip
        self._folder, self._rank, self._world = folder, rank, world
        self._keep_last, self._keep_every = keep_last, keep_every
        self._asynchronous = asynchronous
        self._exchange = Exchange(store, rank, world, patience_s)
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._results: deque[SaveResult] = deque()
        self._turn = 0
        if rank == 0:
            with contextlib.suppress(OSError):  # the first save will say what is wrong with the folder
                folders.sweep(folder)

    def save(self, step: int, entries: Iterable[Entry], meta: dict[str, Any]) -> None:
        """Copy `entries` and `meta` (JSON values, rank 0's counts) and begin to write them as checkpoint `step`.

        Waits for the save before to end. Never raises for a save that fails: `poll` tells.
        """
        begin = time.perf_counter()
        self.wait()
        self._turn += 1
        job = _Job(step, self._turn, begin)
        try:
            job.meta = json.loads(json.dumps(meta))
            self._snapshot.take(entries)
        except Exception as error:
            job.fault = self._describe(error)
        job.stall_s = time.perf_counter() - begin
        if self._asynchronous:
            self._thread = threading.Thread(target=self._run, args=(job,), name=f"save-{step}", daemon=True)
            self._thread.start()
        else:
            self._run(job)

    def poll(self) -> list[SaveResult]:
        """Return how saves ended that did since the last call; does not wait."""
        results = []
        while self._results:
            results.append(self._results.popleft())
        return results

    def wait(self) -> None:
        """Wait until no save is running on this rank: its outcome, the same on all ranks, is there to `poll`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self, patience_s: float = 30.0) -> None:
        """Let a running save end, but not for long: another rank may be gone. Call `wait` first to be sure."""
        if self._thread is not None:
            self._thread.join(patience_s)
        self._exchange.close()
        if self._thread is not None:
            self._thread.join(1.0)
            self._thread = None

    # -- in the background -----------------------------------------------------------------------------------

    def _run(self, job: _Job) -> None:
        try:
            self._exchange.report(job.turn, json.dumps(self._write(job)))
            if self._rank == 0:
                verdict = self._decide(job)
                self._exchange.pronounce(job.turn, json.dumps(asdict(verdict)))
            else:
                verdict = _Verdict(**json.loads(self._exchange.verdict(job.turn)))
        except Exception as error:  # the store went away, or others did
            verdict = _Verdict(False, self._describe(error), 0)
        seconds = time.perf_counter() - job.begin
        stall_s = job.stall_s if self._asynchronous else seconds
        path = folders.step_path(self._folder, job.step)
        FLIGHT.background(phases.SAVE_DONE, job.step)
        self._results.append(SaveResult(job.step, verdict.ok, verdict.error, verdict.bytes, seconds, stall_s, path))

    def _write(self, job: _Job) -> dict[str, Any]:
        """Write this rank's part; return the report for rank 0, on failure too."""
        try:
            if self._rank == 0:
                self._exchange.open(job.turn, self._lacks_room())
            if job.fault is not None:
                return {"fault": job.fault}
            fault = self._exchange.await_open(job.turn)
            if fault is not None:
                return {"fault": fault}
            aside = folders.aside_path(self._folder, job.step)
            aside.mkdir(parents=True, exist_ok=True)
            FLIGHT.background(phases.SAVE_SHARD, job.step)
            return self._snapshot.write(aside / folders.shard_name(self._rank)).to_plain()
        except Exception as error:
            return {"fault": self._describe(error)}

    def _lacks_room(self) -> str | None:
        """Rank 0: return why the save should not begin; a full disk would spoil the logs and other runs too."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            needed = int(_MARGIN * (folders.largest(self._folder) or self._world * self._snapshot.size))
            disk = shutil.disk_usage(self._folder)
        except OSError as error:
            return self._describe(error)
        if disk.total == 0 or disk.free >= needed:  # disks in the network may not know their size
            return None
        return (
            f"{self._folder} has {disk.free / 1e6:,.1f} MB free, and a checkpoint wants {needed / 1e6:,.1f} MB "
            f"({_MARGIN:g} times its size): make room there"
        )

    def _decide(self, job: _Job) -> _Verdict:
        """Rank 0: make the parts a checkpoint once all are there, or take them away."""
        try:
            reports = [json.loads(text) for text in self._exchange.collect(job.turn)]
            faults = [report["fault"] for report in reports if "fault" in report]
            if faults:
                raise CheckpointError(faults[0])
            manifest = folders.merge(job.step, job.meta, map(Shard.from_plain, reports))
            folders.commit(self._folder, manifest)
        except Exception as error:
            shutil.rmtree(folders.aside_path(self._folder, job.step), ignore_errors=True)
            return _Verdict(False, str(error) if isinstance(error, CheckpointError) else self._describe(error), 0)
        size = sum(file.size for file in manifest.files.values())
        try:
            FLIGHT.background(phases.SAVE_PRUNE, job.step)
            folders.prune(self._folder, job.step, self._keep_last, self._keep_every)
        except OSError as error:
            return _Verdict(True, f"older checkpoints could not be removed: {self._describe(error)}", size)
        return _Verdict(True, None, size)

    def _describe(self, error: Exception) -> str:
        """Return one line that says where and what."""
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and not error.filename:
            text = f"{text}: {self._folder}"
        return f"rank {self._rank}: {text}"
