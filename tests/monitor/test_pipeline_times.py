"""Timing a step of a pipeline now and then."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.device import Device
from engine.monitor import pipeline_times
from engine.monitor.pipeline_times import PipelineTimes
from engine.parallel.pipeline.schedule import Action, Kind
from engine.parallel.pipeline.stopwatch import Stopwatch


def recorder(folder: Path, interval: int = 10, stages: int = 2, tp_rank: int = 0) -> PipelineTimes:
    def axis(rank: int) -> SimpleNamespace:
        return SimpleNamespace(size=stages, rank=rank, is_first=rank == 0, group="pp")

    mesh: Any = SimpleNamespace(pp=axis(1), dp=axis(0), tp=axis(tp_rank))
    return PipelineTimes(folder, mesh, Stopwatch(Device(torch.device("cpu"), "gloo")), interval)


def test_what_is_due(tmp_path: Path) -> None:
    due = [step for step in range(300) if recorder(tmp_path, 100).is_due(step)]
    assert due == [10, 110, 210]
    assert not any(recorder(tmp_path, 0).is_due(step) for step in range(300))
    assert not any(recorder(tmp_path, 100, stages=1).is_due(step) for step in range(300))


def test_a_due_step_is_kept_in_place_of_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[Any] = []
    monkeypatch.setattr(pipeline_times.dist, "barrier", lambda group: met.append(group))
    kept, other = recorder(tmp_path), recorder(tmp_path, tp_rank=1)
    for step in range(13):
        for each in (kept, other):
            each.begin(step)
            begin = each.stopwatch.mark()
            each.stopwatch.note(Action(Kind.F, 3, 0), begin)
            each.end(step)
    assert met == ["pp"] * 4  # both at steps 1 and 11
    [path] = (tmp_path / "pipeline").iterdir()
    record = json.loads(path.read_text())
    assert (path.name, record["step"], record["stage"], record["stages"]) == ("stage_0001.json", 12, 1, 2)
    [[kind, micro, chunk, start, end]] = record["actions"]
    assert (kind, micro, chunk) == ("F", 3, 0)
    assert 0 <= start <= end < 60


def test_a_full_disk_does_not_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_times.dist, "barrier", lambda group: None)
    (tmp_path / "pipeline").touch()  # not a folder
    kept = recorder(tmp_path)
    kept.begin(1)
    kept.end(1)
    assert (tmp_path / "pipeline").read_bytes() == b""
