"""The launcher: one message for one failure, signals that arrive once, no rank left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.processes import REPO, environment

LAUNCHER = str(REPO / "tests" / "launch" / "toy_launcher.py")
TIMEOUT = 90


def launch(what: str, folder: Path, restarts: int = 0, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, LAUNCHER, "2", what, str(folder), str(restarts)],
        env=environment(**extra), capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip


@pytest.fixture
def training(tmp_path: Path) -> subprocess.Popen[str]:
    """A launcher whose two ranks are training, in a session of its own as under a terminal."""
    process = subprocess.Popen(
        [sys.executable, LAUNCHER, "2", "train", str(tmp_path), "0"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: all((tmp_path / f"pid{rank}").exists() for rank in range(2)))
    time.sleep(0.2)
    return process


def wait_until(true: object, seconds: float = TIMEOUT) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def is_alive(pid_file: Path) -> bool:
    try:
        status = Path(f"/proc/{pid_file.read_text()}/status").read_text()
    except FileNotFoundError:
        return False
    return "State:\tZ" not in status


def test_ranks_get_a_share_of_the_cores_and_a_heap_that_keeps_its_pages(tmp_path: Path) -> None:
    assert launch("environment", tmp_path).returncode == 0
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    for rank in range(2):
        assert (tmp_path / f"rank{rank}").read_text() == f"{share} 4294967296 8589934592 2 {rank}"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("mistake-of-all", "corpus.jsonl is empty; write data.paths=[another]."),
        ("mistake-of-one", "shard 1 is gone; restore it."),
    ],
)
def test_a_mistake_is_one_line_once(tmp_path: Path, what: str, message: str) -> None:
    done = launch(what, tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"trimaran: {message}\n"


def test_a_bug_shows_the_traceback_of_the_rank_that_has_it(tmp_path: Path) -> None:
    done = launch("bug", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("rank 1 failed:\nTraceback")
    assert "ZeroDivisionError: a bug of ours\ntrimaran: no restart: run.max_restarts=0; start the same" in done.stderr
    assert done.stderr.count("Traceback") == 1


@pytest.mark.parametrize(
    ("what", "message"), [("killed", "rank 1 was ended by SIGKILL"), ("exit", "rank 1 exited with code 7")]
)
def test_a_silent_death_is_named(tmp_path: Path, what: str, message: str) -> None:
    done = launch(what, tmp_path)
    assert done.returncode == 76
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("what", "code"), [("mistake-of-one", 2), ("ladder", 17)])
def test_mistakes_and_the_end_of_the_ladder_are_never_tried_again(tmp_path: Path, what: str, code: int) -> None:
    done = launch(what, tmp_path, restarts=3)
    assert done.returncode == code
    assert done.stderr.count("\n") == 1


def test_ranks_that_die_once_go_on_at_the_next_start(tmp_path: Path) -> None:
    done = launch("killed-once", tmp_path, restarts=1)
    assert done.returncode == 0, done.stderr
    assert "rank 1 was ended by SIGKILL" in done.stderr
    assert "restart 1 of at most 1" in done.stderr


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGHUP, 75)]
)
def test_a_signal_reaches_each_rank_once_and_the_end_is_clean(
    tmp_path: Path, training: subprocess.Popen[str], number: signal.Signals, code: int
) -> None:
    os.killpg(training.pid, number)  # as a terminal does: the whole foreground process group
    output, errors = training.communicate(timeout=TIMEOUT)
    assert (training.returncode, output, errors) == (code, "stopped\n", "")
    assert [(tmp_path / f"saved{rank}").read_text() for rank in range(2)] == ["1 signals"] * 2


def test_a_second_interrupt_ends_everything(tmp_path: Path, training: subprocess.Popen[str]) -> None:
    os.kill(int((tmp_path / "pid0").read_text()), signal.SIGSTOP)  # a rank that will never save
    training.send_signal(signal.SIGINT)
    time.sleep(0.5)
    training.send_signal(signal.SIGINT)
    training.communicate(timeout=TIMEOUT)
    assert training.returncode == 130
    assert not any(is_alive(tmp_path / f"pid{rank}") for rank in range(2))


def test_ranks_die_with_a_killed_launcher(tmp_path: Path, training: subprocess.Popen[str]) -> None:
    training.kill()
    training.communicate(timeout=TIMEOUT)
    wait_until(lambda: not any(is_alive(tmp_path / f"pid{rank}") for rank in range(2)), seconds=10)
