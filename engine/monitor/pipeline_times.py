"""pipeline/stage_*.json: when each stage of a pipeline ran its actions in one of the newest steps, for the report.

The stages begin together, after a barrier, so that their times have one zero without their clocks being compared.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import torch.distributed as dist

from engine.mesh import Mesh
from engine.parallel.pipeline.stopwatch import Stopwatch

FOLDER = "pipeline"


class PipelineTimes:
    """Times a step each `interval` steps, 0 for none; all ranks call `begin` and `end` around every step."""

    def __init__(self, folder: Path, mesh: Mesh, stopwatch: Stopwatch, interval: int) -> None:
        self.folder, self.mesh, self.stopwatch = folder / FOLDER, mesh, stopwatch
        self.interval = interval if mesh.pp.size > 1 else 0
        self._timing = False

    def is_due(self, step: int) -> bool:
        """Say whether trained step `step` is timed: one of every interval, past the slow first steps of a run."""
        return self.interval > 0 and step % self.interval == self.interval // 10

    def begin(self, step: int) -> None:
        """Start timing trained step `step` where it is due."""
        self._timing = self.is_due(step)
        if self._timing:
            dist.barrier(group=self.mesh.pp.group)
            self.stopwatch.start()

    def end(self, step: int) -> None:
        """Keep what was timed; a disk that is full costs a picture, not the run."""
        if not self._timing:
            return
        timed, mesh = self.stopwatch.stop(), self.mesh
        if mesh.dp.is_first and mesh.tp.is_first:
            actions = [
                [t.action.kind, t.action.micro, t.action.chunk, round(t.start, 7), round(t.end, 7)] for t in timed
            ]
            record = {"step": step + 1, "stage": mesh.pp.rank, "stages": mesh.pp.size, "actions": actions}
            path = self.folder / f"stage_{mesh.pp.rank:04d}.json"
            aside = path.with_suffix(".tmp")
            with contextlib.suppress(OSError):
                self.folder.mkdir(exist_ok=True)
                aside.write_text(json.dumps(record))
                os.replace(aside, path)
