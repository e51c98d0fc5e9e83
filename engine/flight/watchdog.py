"""Gives signs of life for a rank, and ends it when its training stands still outside of collectives."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO

from engine.flight.failures import describe_hang
from engine.flight.reader import read_records
from engine.flight.recorder import FLIGHT, stacks_path

_BEAT_S = 1.0
_DUMP_S = 0.5  # for the stacks of others to be written
_LOCKED_S = 5.0  # more patience with a rank whose Python is locked: its peers should be heard first

OnHang = Callable[[str], None]


class Watchdog:
    """A thread that beats once a second, and calls `on_hang` with one line when nothing moves for `limit_s`.

    `on_hang` must end the process: the thread that hangs cannot. A rank whose Python is locked in foreign code has no
    threads either: the C library's timer then dumps its stacks and ends it with code 1. Stacks of all threads go to
    the rank's file in the run's `folder` then, on SIGQUIT, and when the process crashes.
    """

    def __init__(self, folder: Path, rank: int, limit_s: float, on_hang: OnHang) -> None:
        self._folder, self._limit_s, self._on_hang = folder, limit_s, on_hang
        self._stop = threading.Event()
        self._stacks: IO[str] | None = None
        with contextlib.suppress(OSError):  # a full disk: the training matters more than its stacks
            self._stacks = open(stacks_path(folder, rank), "a")  # noqa: SIM115 - open as long as signals may come
            faulthandler.enable(self._stacks)
            faulthandler.register(signal.SIGQUIT, self._stacks, all_threads=True)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the watch. The file of stacks stays open: a peer may ask for them until this process ends."""
        self._stop.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        seen, since = -1, time.monotonic()
        while not self._stop.wait(min(_BEAT_S, self._limit_s / 4)):
            FLIGHT.beat()
            if self._stacks is not None:
                faulthandler.dump_traceback_later(self._limit_s + _LOCKED_S, exit=True, file=self._stacks)
            now = time.monotonic()
            if FLIGHT.progress != seen or FLIGHT.is_patient:
                seen, since = FLIGHT.progress, now
            elif now - since > self._limit_s:
                text = describe_hang(self._folder)
                dump_stacks(self._folder)
                self._on_hang(text)


def dump_stacks(folder: Path, rank: int | None = None) -> None:
    """Have this rank and those beside it, children of the same launcher, write their stacks to their files.

    In an exception handler give the `rank`: its own stack is the exception's, where it waited.
    """
    if rank is not None:
        with contextlib.suppress(OSError), open(stacks_path(folder, rank), "a") as file:
            traceback.print_exc(file=file)
    for record in read_records(folder):
        if record.pid == os.getpid() or _parent(record.pid) == os.getppid():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(record.pid, signal.SIGQUIT)
    time.sleep(_DUMP_S)


def _parent(pid: int) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None
