"""The account of a run's time, from events and metrics alone."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from engine.config import Config
from engine.monitor import attempts
from engine.monitor.goodput import account
from engine.monitor.monitor import Monitor
from tests.monitor.records import step_values


def step(number: int, seconds: float = 2.0, data: float = 0.5, skipped: int = 0) -> dict[str, Any]:
    return {"step": number, "loss": 1.0, "step_time_s": seconds, "data_time_s": data, "skipped": skipped}


def start(at: float, begin: float, after: int = 0, last: float | None = None, repeated: float = 0.0) -> list[Any]:
    return [
        {"event": "start", "time": at},
        {"event": "begin", "time": begin, "step": after, "last": last, "repeated_s": repeated},
    ]


def test_an_undisturbed_run() -> None:
    metrics = [*map(step, range(1, 11)), {"step": 10, "valid_time_s": 3.0}, {"step": 10, "checkpoint_stall_s": 1.0}]
    books = account([*start(100, 106), {"event": "end", "time": 132, "step": 10}], metrics, now=132)
    assert books.total == 32
    assert books.useful == 15
    assert books.lost == {"startup": 6, "repeated": 0, "data": 5, "evaluation": 3, "checkpoint": 1}
    assert books.describe() == (
        "goodput 46.9% of 32 s; lost to start-up 18.8%, data 15.6%, evaluation 9.4%, checkpoints 3.1%, other 6.2%"
    )


@pytest.mark.parametrize(("code", "cause"), [(124, "hang"), (76, "died")])
def test_what_a_failure_costs(code: int, cause: str) -> None:
    """Steps 1 to 6, dead 10 s later; the next start goes on after step 4, and repeats 4 s of steps."""
    events = [*start(0, 5), {"event": "failed", "time": 25, "code": code}, *start(27, 30, 4, last=17, repeated=4)]
    books = account(events, map(step, range(1, 9)), now=38)
    assert books.lost[cause] == 10
    assert books.lost["repeated"] == 4
    assert books.lost["startup"] == 8
    assert books.useful + sum(books.lost.values()) == books.total == 38


def test_time_in_which_nobody_wanted_the_run_does_not_count() -> None:
    events = [*start(0, 5), {"event": "end", "time": 10, "step": 2}, *start(1000, 1005, 2, last=10)]
    books = account(events, map(step, range(1, 5)), now=1010)
    assert books.total == 20
    assert books.lost["startup"] == 10


def test_clocks_set_back_take_nothing_away() -> None:
    books = account([*start(100, 90), *start(80, 85, last=120)], [step(1)], now=60)
    assert (books.total, books.goodput) == (0, 0)
    assert all(seconds >= 0 for seconds in books.lost.values())


def test_a_run_accounts_for_itself_over_a_crash_and_a_rollback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = Monitor(Config(), tmp_path, is_writer=True)
    monitor.begin(0, 9, born=time.time() - 3)
    for number in range(1, 7):
        monitor.log(number, step_values())
    monitor.close()  # as a crash does: no word of an end
    os.utime(tmp_path / "metrics.jsonl", (time.time() - 2,) * 2)
    again = Monitor(Config(), tmp_path, is_writer=True)
    again.begin(4, 9)
    for number in (5, 6):
        again.log(number, step_values())
    again.timeline = 1  # back to step 5
    again.log(6, step_values())
    again.end(6)
    again.close()
    books = attempts.read_account(tmp_path)
    one = step_values()["step_time_s"]
    assert books.lost["repeated"] == pytest.approx(2 * one)
    assert books.lost["rollback"] == pytest.approx(one)
    assert books.lost["died"] == pytest.approx(2, abs=0.5)
    assert books.lost["startup"] == pytest.approx(3, abs=0.5)
    assert [r["step"] for r in attempts.records(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6, 6]
    assert "goodput" in capsys.readouterr().out
