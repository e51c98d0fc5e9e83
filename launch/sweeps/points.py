"""The points of a sweep: each a run of its own in <run.root>/sweeps/<run.name>/<what is swept>, with word of its end.

`point.json` in a point's folder is written by whoever starts the sweep, then by the process that runs the point, which
may be on another machine; nobody else writes it.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import ConfigError, explained

SWEEPS, FILE = "sweeps", "point.json"
WAITING, RUNNING, ENDED, LOST = "waiting", "running", "ended", "lost"

_LONGEST = 120  # characters of a folder's name; file systems take 255 bytes
_SILENT_S = 180.0  # a running point shows no sign of life while its data are built


@dataclass
class Point:
    """One point: where its run is, what it sets, and how far it is."""

    folder: Path
    overrides: list[str]  # what is swept, such as optim.lr=0.001
    state: str = WAITING
    code: int | None = None  # of its end (launch/codes.py)
    reason: str = ""
    where: str = ""  # the machine, and the job of a batch system
    time: float = field(default_factory=time.time)  # of the last change

    @property
    def name(self) -> str:
        return self.folder.name

    def note(self, state: str, code: int | None = None, reason: str = "") -> None:
        """Write down how far the point is, whole or not at all; DiskError where that cannot be."""
        self.state, self.code, self.reason, self.time = state, code, reason, time.time()
        job = os.environ.get("SLURM_JOB_ID")
        if state != WAITING:
            self.where = socket.gethostname() + (f", SLURM job {job}" if job else "")
        plain = dataclasses.asdict(self)
        del plain["folder"]
        aside = self.folder / f"{FILE}.tmp"
        with explained(f"{self.folder} cannot be written", "make room there, or write another run.name or run.root"):
            self.folder.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(plain))
            os.replace(aside, self.folder / FILE)

    def alive(self) -> bool:
        """Say whether a running point shows signs of life: a process holds its run folder, or it has just written."""
        newest = max([self.time, *(_changed(self.folder / name) for name in ("metrics.jsonl", "attempts.jsonl"))])
        return time.time() - newest < _SILENT_S or _is_locked(self.folder / ".lock")


def read_points(folder: Path) -> list[Point]:
    """Return the points of a sweep's folder, as they were begun; ConfigError where it is none."""
    found = []
    with explained(f"{folder} cannot be read", "name the folder of a sweep, such as runs/sweeps/lr"):
        for path in sorted(folder.iterdir()):
            if (path / FILE).exists():
                found.append(_read(path))
    if not found:
        raise ConfigError(
            f"{folder} is no sweep: no folder in it holds {FILE}; name one below {SWEEPS}/ of run.root, such as "
            "runs/sweeps/lr."
        )
    return found


def _read(folder: Path) -> Point:
    try:
        return Point(folder=folder, **json.loads((folder / FILE).read_bytes()))
    except (ValueError, TypeError):
        raise ConfigError(f"{folder / FILE} is not what a sweep wrote; start the sweep again to renew it.") from None


def point_name(overrides: Iterable[str]) -> str:
    """Return the folder's name of a point: the same when its sweep is started again, and another for each point."""
    whole = ",".join(overrides)
    name = re.sub(r"[^\w.=+,-]", "_", whole)
    if name == whole and len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _changed(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def _is_locked(path: Path) -> bool:
    """Say whether another process holds a run folder's lock (engine.checkpoint.lock)."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
