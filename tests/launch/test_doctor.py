"""Doctor shows what the dispatch would choose, and why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.ops import backend
from launch import doctor

SCRIPT = Path(doctor.__file__)


@pytest.mark.parametrize("setting", ["device=cpu", "run.device=cpu"])
def test_the_table_is_what_the_dispatch_chooses(setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    backend.select("auto")
    assert doctor.main([setting]) == 0
    shown = capsys.readouterr().out
    for op, name in backend.active("cpu", torch.bfloat16).items():
        (line,) = (line for line in shown.splitlines() if op in line.split())
        assert name in line
    assert f"torch {torch.__version__}" in shown


def test_without_the_extension_everything_runs_on_references_and_says_so() -> None:
    """In a process of its own, where the extension cannot be imported."""
    code = f"import sys; sys.modules['engine._C'] = None; from launch.doctor import main; main([{'device=cpu'!r}])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPT.parents[1], timeout=120,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if "│" in line]
    assert len(rows) == len(backend.OPS)
    assert all("reference" in row and "cpu" not in row for row in rows)
    assert done.stdout.count("the extension cannot be loaded") == 1


@pytest.mark.parametrize("argument", ["devices=cpu", "cpu", "device=tpu"])
def test_bad_settings(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([argument]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert argument.partition("=")[2] in said
