"""metrics.jsonl: one JSON object per line, appended in one write each, so that a killed run keeps all it logged."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path

from engine.monitor.metrics import INFO, Record


class JsonlSink:
    """Appends records to `path`. Values that are not finite are written as null: NaN is not JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def begin(self, step: int, total: int) -> None:
        """Forget what an earlier attempt logged after `step`, so that each step appears once, and open the file."""
        drop_after(self.path, step)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def log(self, record: Record) -> None:
        """Append one record; OSError when the disk is full, with no part of the line left behind."""
        if self._file is None:
            return
        line = json.dumps({key: _json_value(value) for key, value in record.items()}).encode() + b"\n"
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
        except OSError:
            written = 0
        if written < len(line):
            os.ftruncate(self._file, size)
            raise OSError(f"{self.path}: no space left for metrics")

    def event(self, text: str, level: str = INFO) -> None:
        """Notices are for people; the file holds numbers."""

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def drop_after(path: Path, step: int) -> None:
    """Remove records later than `step` and lines cut off by a crash; atomic, and no write when all may stay."""
    if not path.exists():
        return
    aside = path.with_name(path.name + ".tmp")
    dropped = False
    with open(path, "rb") as old, open(aside, "wb") as new:
        for line in old:
            keep = _step_of(line) <= step
            dropped |= not keep
            if keep:
                new.write(line)
        new.flush()
        os.fsync(new.fileno())
    if dropped:
        os.replace(aside, path)
    else:
        aside.unlink()


def _step_of(line: bytes) -> float:
    """Return the step of a line; infinity for a line that is no whole record."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        if line.endswith(b"\n"):
            return float(json.loads(line)["step"])
    return math.inf


def _json_value(value: float | int) -> float | int | None:
    return value if math.isfinite(value) else None
