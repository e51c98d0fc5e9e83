"""The monitor: one writer, every record to every sink, nothing that stops the training."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.writer import SaveResult
from engine.config import Config
from engine.monitor.metrics import METRICS
from engine.monitor.monitor import Monitor
from tests.monitor.records import step_values


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_and_its_resumption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for begin in (0, 1):
        monitor = Monitor(Config(), tmp_path, is_writer=True)
        monitor.event("model llama")
        monitor.begin(begin, 3)
        for step in range(begin + 1, 4):
            monitor.log(step, step_values())
        monitor.log_validation(3, 2.0, 0.25)
        monitor.saved(SaveResult(3, True, None, 1000, 0.5, 0.1, tmp_path))
        monitor.close()
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [1, 2, 3]
    assert rows(tmp_path)[-2:] == [
        {"step": 3, "timeline": 0, "valid_loss": 2.0, "valid_perplexity": math.exp(2.0), "valid_time_s": 0.25},
        {"step": 3, "timeline": 0, "checkpoint_save_s": 0.5, "checkpoint_stall_s": 0.1, "checkpoint_bytes": 1000},
    ]
    assert all(key in METRICS for row in rows(tmp_path) for key in row if key != "step")
    assert capsys.readouterr().out.count("model llama") == 2


def test_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = Monitor(Config(), tmp_path, is_writer=False)
    monitor.event("hello")
    monitor.begin(0, 1)
    monitor.log(1, step_values())
    monitor.log_validation(1, 1e9, 0.1)
    monitor.close()
    assert capsys.readouterr().out == ""
    assert os.listdir(tmp_path) == []


def test_a_failed_save_and_a_failed_pruning_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = Monitor(Config(), tmp_path, is_writer=True)
    monitor.begin(0, 9)
    monitor.saved(SaveResult(4, False, "No space left on device", 0, 0.5, 0.1, tmp_path))
    monitor.saved(SaveResult(6, True, "cannot remove step 2", 10, 0.5, 0.1, tmp_path))
    monitor.close()
    out = capsys.readouterr().out
    assert "step 4 was NOT saved: No space left on device; training goes on" in out
    assert "checkpoint of step 6: cannot remove step 2" in out
    assert [row["step"] for row in rows(tmp_path)] == [6]


def test_lost_metrics_are_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = Monitor(Config(), tmp_path, is_writer=True)
    monitor.begin(0, 3)
    monkeypatch.setattr("engine.monitor.jsonl.os.write", lambda file, line: 0)
    for step in (1, 2, 3):
        monitor.log(step, step_values())
    out = capsys.readouterr().out
    assert out.count("metrics are being lost") == 1
    assert out.count("loss ") == 3  # the console still shows every step


def test_a_console_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output that goes to a full disk, or to a reader that has left."""
    for stream in (open("/dev/full", "w"), io.TextIOWrapper(Broken())):  # noqa: SIM115 - a failing close is suppressed
        monkeypatch.setattr("sys.stdout", stream)
        monitor = Monitor(Config(), tmp_path, is_writer=True)
        monitor.event("model llama")
        monitor.begin(0, 1)
        monitor.log(1, step_values())
        monitor.saved(SaveResult(1, False, "No space left on device", 0, 0.5, 0.1, tmp_path))
        monitor.close()
        assert [row["step"] for row in rows(tmp_path)] == [1]
        with contextlib.suppress(OSError):
            stream.close()


class Broken(io.RawIOBase):
    """A pipe without a reader."""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_notices_are_one_line_and_move_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = Monitor(Config(), tmp_path, is_writer=True)
    monitor.event("skipped \x1b[2J\nhostile name")
    assert capsys.readouterr().out == "skipped \\x1b[2J\\nhostile name\n"
