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
from tests.launch.processes import environment

SCRIPT = Path(doctor.__file__)


@pytest.mark.parametrize("setting", ["device=cpu", "run.device=cpu"])
def test_the_table_is_what_the_dispatch_chooses(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend.select("auto")
    assert doctor.main([setting, f"run.root={tmp_path}/runs"]) == 0
    shown = capsys.readouterr().out
    for op, name in backend.active("cpu", torch.bfloat16).items():
        (line,) = (line for line in shown.splitlines() if op in line.split())
        assert name in line
    assert f"torch {torch.__version__}" in shown
    assert not (tmp_path / "runs").exists(), "something was left behind"


def test_without_the_extension_everything_runs_on_references_and_says_so(tmp_path: Path) -> None:
    """In a process of its own, where the extension cannot be imported."""
    words = ["device=cpu", f"run.root={tmp_path}"]
    code = f"import sys; sys.modules['engine._C'] = None; from launch.doctor import main; sys.exit(main({words}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPT.parents[1], timeout=120,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if "│" in line]
    assert len(rows) == len(backend.OPS)
    assert all("reference" in row and "cpu" not in row for row in rows)
    assert done.stdout.count("the extension cannot be loaded") == 1
    assert "warning extension" in " ".join(done.stdout.split())


def test_it_starts_the_ranks_of_the_layout_and_a_fault_is_code_3(tmp_path: Path) -> None:
    """The folder that all ranks are to write is a file."""
    in_the_way = tmp_path / "runs"
    in_the_way.write_text("")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "run.device=cpu", "parallel.dp=2", f"run.root={in_the_way}"],
        capture_output=True, text=True, cwd=tmp_path, timeout=120, env=environment(),
    )  # fmt: skip
    said = " ".join(done.stdout.split())
    assert done.returncode == 3, done.stdout + done.stderr
    assert f"fault folder {in_the_way}/default cannot be written by rank 0, rank 1: Not a directory" in said
    assert "ok layout 2 rank(s): pp=1 dp=2" in said
    assert "ok links dp:" in said
    assert "ok ports port" in said or "ports port 29500 is in use" in said
    assert done.stderr == ""


@pytest.mark.parametrize("argument", ["devices=cpu", "cpu", "device=tpu"])
def test_bad_settings(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([argument]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert argument.partition("=")[2] in said
