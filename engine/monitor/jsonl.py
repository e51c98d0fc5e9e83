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

    def begin(self, step: int, total: int, timeline: int = 0) -> None:
        """Forget what an earlier attempt logged after `step`, so that a timeline has each step once; open the file."""
        drop_after(self.path, step, timeline)
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


def drop_after(path: Path, step: int, timeline: int = 0) -> None:
    """Remove records later than `step` of this timeline (the number of rollbacks before them) or a later one.

    Lines that a crash cut off go too. Atomic, and no write when all may stay.
    """
    if not path.exists():
        return
    aside = path.with_name(path.name + ".tmp")
    dropped = False
    with open(path, "rb") as old, open(aside, "wb") as new:
        for line in old:
            found, when = _place_of(line)
            keep = found <= step or when < timeline
            dropped |= not keep
            if keep:
                new.write(line)
        new.flush()
        os.fsync(new.fileno())
    if dropped:
        os.replace(aside, path)
    else:
        aside.unlink()


def _place_of(line: bytes) -> tuple[float, float]:
    """Return the step and the timeline of a line; infinities for a line that is no whole record."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        if line.endswith(b"\n"):
            record = json.loads(line)
            return float(record["step"]), float(record.get("timeline", math.inf))
    return math.inf, math.inf


def _json_value(value: float | int) -> float | int | None:
    return value if math.isfinite(value) else None
