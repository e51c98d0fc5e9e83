"""A rank's flight record: what it is doing now and its last collectives, in a text file that survives the rank.

The file is mapped into memory, so an entry costs a microsecond or two, no system call, and is there after kill -9.
It has rows of one length: who I am, what the training does, what a save in the background does, a sign of life, and
a ring of the newest collectives. Times are of the machine's monotonic clock, in seconds: comparable between the ranks
of one machine, and indifferent to clocks being set.
"""

from __future__ import annotations

import itertools
import mmap
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from engine.flight.phases import START

ROW = 128  # bytes of a row, its end of line included
RING = 48  # newest collectives kept
_WHO, _NOW, _SAVE, _BEAT, _FIRST = range(5)
_SIZE = (_FIRST + RING) * ROW
POSTED, WAITING, OVER = "posted", "waiting", "done"

Listener = Callable[[str, int], None]  # (phase, step), called when the phase begins


def record_path(folder: Path, rank: int) -> Path:
    """Return where rank `rank` keeps its record in a run's folder."""
    return folder / "flight" / f"rank-{rank:05d}.txt"


def stacks_path(folder: Path, rank: int) -> Path:
    """Return where the stacks of rank `rank` are dumped."""
    return folder / "flight" / f"rank-{rank:05d}.stacks"


def host_name() -> str:
    """Return the name of this host as records have it."""
    return socket.gethostname()[:32]


def attempt() -> int:
    """Return how often this run was started again by whoever restarts it: our launcher, torchrun, a batch system."""
    counts = ("TRIMARAN_ATTEMPT", "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return sum(int(os.environ.get(name) or "0") for name in counts)


class Entry:
    """A collective on record: its number, where its row begins, and when it was posted or waited for, in ns."""

    __slots__ = ("at", "name", "since")

    def __init__(self, number: int, at: int, since: int) -> None:
        self.name, self.at, self.since = b"#%d " % number, at, since


class Recorder:
    """The record of one process. Before `open`, and where no file can be made, it is kept in memory only.

    `step` counts from 1, as the console does: the step that is being made. `progress` grows with every entry: a rank
    whose progress stands still is stuck. `waited_s` is the time that the training spent waiting for collectives,
    `born` when this process began, in seconds since 1970.
    """

    def __init__(self) -> None:
        self._page: bytearray | mmap.mmap = bytearray((b" " * (ROW - 1) + b"\n") * (_FIRST + RING))
        self.step, self.phase_name, self.phase_since = 0, START, time.monotonic()
        self.progress, self.waited_s = 0, 0.0
        self.born = time.time()
        self.listener: Listener | None = None
        self.is_patient = True  # a stretch that may take long, as starting and waiting for the last save do
        self._numbers = itertools.count(1)

    # -- where it is kept ------------------------------------------------------------------------------------

    def open(self, folder: Path, rank: int, world: int, axes: str) -> str | None:
        """Keep the record in the run's `folder` from now on; return why not, when that fails.

        `axes` names the sizes of the mesh, outermost first: "pp=1 dp=2 cp=1 tp=1". Of the attempt before, one record
        is kept.
        """
        path = record_path(folder, rank)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for old in (path, stacks_path(folder, rank)):
                if old.exists():
                    old.replace(old.with_suffix(f".before{old.suffix}"))
            with open(path, "x+b") as file:
                file.write(self._page)  # not truncate: a page that finds no room later would end the process
                file.flush()
                self._page = mmap.mmap(file.fileno(), _SIZE)
        except OSError as error:
            return f"{path}: {error.strerror or error}"
        self._write(_WHO, f"rank {rank} of {world} pid {os.getpid()} attempt {attempt()} {axes} host {host_name()}")
        self.beat()
        return None

    # -- what is going on --------------------------------------------------------------------------------------

    def begin_step(self, step: int) -> None:
        """Say which step is being made, from 1 on."""
        self.step = step

    def phase(self, name: str) -> None:
        """Say what the training does now (`engine.flight.phases`)."""
        self.phase_name, self.phase_since = name, time.monotonic()
        self.progress += 1
        self._write(_NOW, f"step {self.step} phase {name} since {self.phase_since:.3f}")
        if self.listener is not None:
            self.listener(name, self.step)

    def background(self, name: str, step: int) -> None:
        """Say what a save in the background does now; `step` is the one it saves."""
        self.progress += 1
        self._write(_SAVE, f"step {step} phase {name} since {time.monotonic():.3f}")
        if self.listener is not None:
            self.listener(name, step)

    def start(self, op: str, axis: str, nbytes: int, peer: int = -1, *, waits: bool = False) -> Entry:
        """Note a collective, or a message from or to the global rank `peer`, that begins; `waits` as in `wait`."""
        number, now = next(self._numbers), time.monotonic_ns()
        at = (_FIRST + number % RING) * ROW
        state = WAITING if waits else POSTED
        text = f"{state:<8}{now:>20} #{number} step {self.step} {op} {axis} bytes {nbytes} peer {peer}"
        self._page[at : at + ROW - 1] = text.encode().ljust(ROW - 1)[: ROW - 1]
        self.progress += 1
        return Entry(number, at, now)

    def wait(self, entry: Entry) -> None:
        """Note that the training stands still until the collective of `entry` is done."""
        entry.since = self._change(entry, WAITING)

    def done(self, entry: Entry) -> None:
        """Note that the collective is done, as far as the host can tell."""
        self.waited_s += (self._change(entry, OVER) - entry.since) * 1e-9
        self.progress += 1

    def beat(self) -> None:
        """Give a sign of life: called about once a second by a thread that does nothing else."""
        self._write(_BEAT, f"alive {time.monotonic():.3f} wall {time.time():.3f}")

    def _change(self, entry: Entry, state: str) -> int:
        now = time.monotonic_ns()
        if self._page[entry.at + 29 : entry.at + 29 + len(entry.name)] == entry.name:  # else overwritten since
            self._page[entry.at : entry.at + 28] = f"{state:<8}{now:>20}".encode()
        return now

    def _write(self, row: int, text: str) -> None:
        self._page[row * ROW : (row + 1) * ROW - 1] = text.encode("ascii", "replace").ljust(ROW - 1)[: ROW - 1]


FLIGHT = Recorder()  # one per process, like its log: every floor of the engine writes to it
