"""launch/report.py from the command line's side."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.report import main
from tests.monitor.report.fake_run import run_folder


def test_one_run_and_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (run_folder(tmp_path / "sweep" / name, 100) for name in ("one", "two"))
    assert main([f"run={one}"]) == 0
    assert main([str(one), str(two)]) == 0
    assert main([f"run={tmp_path / 'sweep'}", f"output={tmp_path / 'x.html'}"]) == 0
    out = capsys.readouterr().out
    for path in (one / "report.html", tmp_path / "sweep" / "report.html", tmp_path / "x.html"):
        assert path.read_text().startswith("<!doctype html>")
        assert f"report {path}: 0." in out
    assert not list(tmp_path.rglob("*.tmp"))


def test_mistakes_are_answered_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run_folder(tmp_path / "one", 100)
    for arguments, answer in (
        ([], "no run is named; write run=runs/default, say."),
        (["rum=x"], "unknown setting 'rum=x'; write run=FOLDER or output=FILE. Did you mean 'run'?"),
        (["run="], "run= names nothing; write run=runs/default"),
        ([str(tmp_path / "none")], "is no folder"),
        ([str(one), f"output={tmp_path / 'no' / 'x.html'}"], "cannot be written: No such file or directory"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert answer in error
        assert error.count("\n") == 1


def test_a_run_with_an_equals_sign_in_its_name(tmp_path: Path) -> None:
    """As the points of a sweep have."""
    run = run_folder(tmp_path / "tiny-optim.lr=0.001", 100)
    assert main([str(run)]) == 0
    assert (run / "report.html").exists()
