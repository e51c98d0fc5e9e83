"""`attempts.jsonl`: when a run was started, went on and ended, for the account of its time."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.monitor.goodput import Account, account

EXPLAINED = "explained"  # the launcher said why the ranks ended, with `code` and `why`


def note(folder: Path, event: str, **values: Any) -> None:
    """Append an event with the time; a full disk loses it, not the run."""
    line = json.dumps({"event": event, "time": time.time(), **values}) + "\n"
    with contextlib.suppress(OSError):
        file = os.open(folder / "attempts.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)


def begin(folder: Path, step: int, timeline: int) -> None:
    """Note that training goes on after `step`, before the metrics of later steps of `timeline` are forgotten."""
    metrics = folder / "metrics.jsonl"
    last = metrics.stat().st_mtime if metrics.exists() else None
    note(folder, "begin", step=step, last=last, repeated_s=_time_after(folder, step, timeline))


def _time_after(folder: Path, step: int, timeline: int) -> float:
    """Return the seconds of the steps, and of what came after them, that metrics.jsonl holds beyond `step`."""
    given_up = Account()
    for record in records(folder / "metrics.jsonl"):
        if record.get("step", 0) > step and record.get("timeline", 0) >= timeline:
            given_up.add(record)
    return given_up.useful + sum(given_up.lost.values())


def read_account(folder: Path) -> Account:
    """Return the account of a run up to now."""
    return account(records(folder / "attempts.jsonl"), records(folder / "metrics.jsonl"), time.time())


def last_words(folder: Path) -> str:
    """Return why the newest attempt that failed did; nothing when none has."""
    return next((str(event["why"]) for event in [*records(folder / "attempts.jsonl")][::-1]
                 if event.get("event") == EXPLAINED), "")  # fmt: skip


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of JSON lines, without what a crash cut off; none where there is no file."""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                yield json.loads(line)
