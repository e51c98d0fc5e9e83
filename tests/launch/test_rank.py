"""A rank: what it makes of its failures when nobody but torchrun is above it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from engine.errors import DataError, EngineError, StabilityStop
from engine.flight.failures import Hang
from launch import rank
from tests.launch.processes import REPO, environment


def throw(error: BaseException) -> Callable[[], int]:
    def body() -> int:
        raise error

    return body


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The error file of a rank started by our launcher (this process's parent, as far as the rank can tell)."""
    monkeypatch.setenv(rank.LAUNCHER, str(os.getppid()))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setattr(rank, "_die_with", lambda launcher, number: None)
    return tmp_path / "error.json"


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (DataError("no such file"), "user", 2),
        (ZeroDivisionError("ours"), "bug", 1),
        (StabilityStop("10 rollbacks are used up."), "stop", 17),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]:1"), "echo", 76),
        (RuntimeError("[gloo/transport/tcp/unbound_buffer.cc] Timed out waiting 5000ms for recv"), "hang", 124),
        (Hang("rank 1 does not come on."), "hang", 124),
        (RuntimeError("shapes differ"), "bug", 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "memory", 1),
        (dist.DistNetworkError("the store went away"), "echo", 76),
    ],
)
def test_a_failure_is_reported_with_its_kind(report: Path, error: Exception, kind: str, code: int) -> None:
    assert rank.run_rank(throw(error)) == code
    written = json.loads(report.read_text())
    assert written["kind"] == kind
    assert str(error) in written["message"]
    assert ("Traceback" in written["message"]) == (not isinstance(error, EngineError | Hang))


def test_success_and_interrupts_leave_no_report(report: Path) -> None:
    assert rank.run_rank(lambda: 0) == 0
    assert rank.run_rank(throw(KeyboardInterrupt())) == 130
    assert not report.exists()


def test_a_bug_keeps_its_traceback_under_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (rank.LAUNCHER, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    assert rank.run_rank(throw(ZeroDivisionError())) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_mistake_is_printed_even_without_a_store(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (rank.LAUNCHER, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert rank.run_rank(throw(DataError("no such file"))) == 2
    assert capsys.readouterr().err == "trimaran: no such file\n"


def test_under_torchrun_a_mistake_is_printed_by_one_rank(tmp_path: Path) -> None:
    toy = str(REPO / "tests" / "launch" / "toy_rank.py")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", toy, "mistake-of-all",
         str(tmp_path)],
        env=environment(), capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("trimaran: corpus.jsonl is empty") == 1
