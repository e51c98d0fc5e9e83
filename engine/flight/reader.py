"""Reads the flight records of a run, of live ranks and of dead ones."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from engine.flight.recorder import ROW, WAITING

_WHO = re.compile(r"rank (\d+) of (\d+) pid (\d+) attempt (\d+) pp=(\d+) dp=(\d+) cp=(\d+) tp=(\d+) host (\S*)")
_DOES = re.compile(r"step (\d+) phase (\S+) since ([\d.]+)")
_ALIVE = re.compile(r"alive ([\d.]+)")
_ENTRY = re.compile(r"(\w+) +(\d+) #(\d+) step (\d+) (\S+) (\S+) bytes (\d+) peer (-?\d+)")


@dataclass(frozen=True)
class Collective:
    """One collective, or one message from or to the global rank `peer` (-1: none). `since` in monotonic seconds."""

    number: int
    step: int
    op: str
    axis: str
    nbytes: int
    peer: int
    state: str  # posted | waiting | done
    since: float

    def describe(self) -> str:
        """Return it in words."""
        if self.peer >= 0:
            return f"{self.op} {'from' if self.op == 'receive' else 'to'} rank {self.peer} ({self.nbytes:,} bytes)"
        return f"{self.op} over {self.axis} ({self.nbytes:,} bytes)"


@dataclass(frozen=True)
class RankRecord:
    """What one rank was doing when its record was read, or when it died."""

    rank: int
    world: int
    pid: int
    attempt: int
    sizes: tuple[int, int, int, int]  # of the axes pp, dp, cp, tp
    host: str
    step: int
    phase: str
    since: float
    save: tuple[int, str] | None  # the step that a save in the background holds, and what it does
    alive: float  # the last sign of life
    collectives: tuple[Collective, ...]  # oldest first

    @property
    def waiting(self) -> Collective | None:
        """The collective that the training stands still for."""
        found = [entry for entry in self.collectives if entry.state == WAITING]
        return found[-1] if found else None

    def describe(self, now: float | None = None) -> str:
        """Return what the rank does in words; `now` (monotonic) adds for how long."""
        place = f"step {self.step}, {self.phase}" if self.step else self.phase
        if self.waiting is not None:
            place += f", in {self.waiting.describe()}"
        began = self.since if self.waiting is None else self.waiting.since
        return place if now is None else f"{place}, for {now - began:.1f} s"


def read_records(folder: Path) -> list[RankRecord]:
    """Return the records in a run's `folder` by rank; those of an attempt before the newest are left out."""
    found = []
    if not os.path.isdir(folder):  # also where no such name can be, which Path.is_dir answers with an error
        return []
    for path in sorted((folder / "flight").glob("rank-?????.txt")):
        record = _parse(path.read_bytes())
        if record is not None:
            found.append(record)
    newest = max((record.attempt for record in found), default=0)
    return [record for record in found if record.attempt == newest]


def _parse(page: bytes) -> RankRecord | None:
    rows = [page[at : at + ROW].decode("ascii", "replace") for at in range(0, len(page), ROW)]
    who = _WHO.match(rows[0]) if len(rows) > 4 else None
    if who is None:
        return None
    rank, world, pid, attempt, pp, dp, cp, tp = map(int, who.groups()[:8])
    now, save, alive = _DOES.match(rows[1]), _DOES.match(rows[2]), _ALIVE.match(rows[3])
    entries = sorted((e for e in map(_collective, rows[4:]) if e is not None), key=lambda e: e.number)
    return RankRecord(
        rank=rank, world=world, pid=pid, attempt=attempt, sizes=(pp, dp, cp, tp), host=who[9],
        step=int(now[1]) if now else 0, phase=now[2] if now else "start", since=float(now[3]) if now else 0.0,
        save=(int(save[1]), save[2]) if save else None, alive=float(alive[1]) if alive else 0.0,
        collectives=tuple(entries),
    )  # fmt: skip


def _collective(row: str) -> Collective | None:
    match = _ENTRY.match(row)
    if match is None:
        return None
    state, since, number, step, op, axis, nbytes, peer = match.groups()
    return Collective(int(number), int(step), op, axis, int(nbytes), int(peer), state, int(since) * 1e-9)
