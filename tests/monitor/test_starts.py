"""starts.jsonl: a line per start, whatever happened to the one before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.config import Config
from engine.monitor.monitor import Monitor
from engine.monitor.starts import StartsSink, code_version


def starts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]


def test_each_start_is_noted_by_the_writer(tmp_path: Path) -> None:
    for step in (0, 40):
        monitors = [Monitor(Config(), tmp_path, is_writer=writer) for writer in (True, False)]
        for monitor in monitors:
            monitor.begin(step, 100)
            monitor.close()
    assert [start["step"] for start in starts(tmp_path)] == [0, 40]
    assert starts(tmp_path)[1]["config"]["train"]["steps"] == 200
    assert starts(tmp_path)[1]["environment"].keys() >= {"trimaran", "code", "torch", "device", "host"}


def test_a_line_cut_off_by_a_crash_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "starts.jsonl").write_text('{"step": 0}\n{"ste')
    StartsSink(tmp_path, Config()).begin(7, 10)
    lines = (tmp_path / "starts.jsonl").read_text().splitlines()
    assert lines[:2] == ['{"step": 0}', '{"ste']
    assert json.loads(lines[2])["step"] == 7


def test_no_git_is_no_error(monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", "")
    assert code_version() is None
