"""metrics.jsonl: each step once, whatever happened to the attempts before."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.monitor.jsonl import JsonlSink, drop_after

WRITER = """
import sys
from pathlib import Path
from engine.monitor.jsonl import JsonlSink
sink = JsonlSink(Path(sys.argv[1]))
sink.begin(0, 10**9)
for step in range(1, 10**9):
    sink.log({"step": step, "loss": 1.0 / step, "note": 1e300})
"""


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def write(path: Path, begin: int, end: int) -> None:
    sink = JsonlSink(path)
    sink.begin(begin, end)
    for step in range(begin + 1, end + 1):
        sink.log({"step": step, "loss": step / 7})
    sink.close()


@settings(deadline=None)  # files on a busy disk
@given(attempts=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=6))
def test_each_step_appears_once_over_any_attempts(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[tuple[int, int]]
) -> None:
    """Each attempt resumes at or before where the last one ended, and goes on for a few steps."""
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    reached = 0
    for back, forward in attempts:
        begin = max(0, reached - back)
        write(path, begin, begin + forward)
        reached = begin + forward
        assert steps(path) == list(range(1, reached + 1))
    assert list(path.parent.iterdir()) == [path]


def test_a_killed_writer_loses_nothing_it_logged(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=Path(__file__).resolve().parents[2])
    deadline = time.monotonic() + 60
    while not path.exists() or path.stat().st_size < 50_000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert steps(path) == list(range(1, len(steps(path)) + 1))


def test_cut_off_and_foreign_lines_go_when_the_run_resumes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\nnot json\n[2]\n{"loss": 2}\n{"step": 2}\n{"step": 3')
    drop_after(path, 5)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_a_late_checkpoint_record_stays(tmp_path: Path) -> None:
    """A background save of step 2 may be logged after step 3; resuming at 2 keeps it and drops step 3."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"step": 3}\n{"step": 2, "checkpoint_bytes": 1}\n')
    drop_after(path, 2)
    assert path.read_text() == '{"step": 2}\n{"step": 2, "checkpoint_bytes": 1}\n'


def test_nothing_is_rewritten_when_all_may_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 3)
    before = path.stat()
    drop_after(path, 3)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_values_that_are_no_numbers_are_null(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.begin(0, 1)
    sink.log({"step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    sink.close()
    assert sink.path.read_text() == '{"step": 1, "loss": null, "grad_norm": null}\n'


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.begin(0, 9)
    old_limit, old_handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (45, old_limit[1]))
        failures = 0
        for step in range(1, 9):
            try:
                sink.log({"step": step, "loss": 0.5})
            except OSError:
                failures += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    sink.log({"step": 9, "loss": 0.5})  # there is room again
    sink.close()
    assert failures == 7
    assert steps(sink.path) == [1, 9]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_what_a_rollback_took_back_stays(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [(1, 0), (2, 0), (3, 0), (2, 1), (3, 1)]
    path.write_text("".join(f'{{"step": {step}, "timeline": {timeline}}}\n' for step, timeline in rows))
    drop_after(path, 2, timeline=1)
    left = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["timeline"]) for row in left] == [(1, 0), (2, 0), (3, 0), (2, 1)]
