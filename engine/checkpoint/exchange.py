"""How ranks agree on a save from background threads: short texts through the process group's store.

Collectives have no place here, they would run into those of the training. Every wait ends: with what was waited
for, after `patience_s`, or when the writer is closed.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Sequence

from torch.distributed import Store

from engine.errors import CheckpointError

_FASTEST_S, _SLOWEST_S = 0.002, 0.1
_FAREWELL_S = 5.0


class Exchange:
    """Reports of all ranks to rank 0 and its verdict to all, for numbered rounds.

    Each rank must construct as many of these on one store as any other: keys carry their number, and torchrun's
    restart count, so that those of an earlier writer or an earlier start are never read.
    """

    def __init__(self, store: Store, rank: int, world: int, patience_s: float) -> None:
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        number = store.add(f"checkpoint/{start}/writers/{rank}", 1)
        self._keys = f"checkpoint/{start}/{number}"
        self._store = (
            store.clone() if hasattr(store, "clone") else store
        )  # a connection of its own: the training may be blocked in the other
        self._rank, self._world, self._patience_s = rank, world, patience_s
        self._closed = threading.Event()
        self._pronounced = 0

    def open(self, turn: int, fault: str | None) -> None:
        """Rank 0: say that the folder is tidy and has room for round `turn`, so that others may write, or a `fault`."""
        self._store.set(self._open_key(turn), json.dumps(fault))

    def await_open(self, turn: int) -> str | None:
        """Wait until rank 0 has said so; return the fault it found."""
        self._await([self._open_key(turn)], "rank 0 is not ready to save", self._patience_s)
        return json.loads(self._store.get(self._open_key(turn)))

    def report(self, turn: int, text: str) -> None:
        """Send this rank's report of round `turn`."""
        self._store.set(self._report_key(turn, self._rank), text)

    def collect(self, turn: int) -> list[str]:
        """Rank 0: return all reports of round `turn`, in rank order."""
        keys = [self._report_key(turn, rank) for rank in range(self._world)]
        self._await(keys, "not every rank wrote its part", self._patience_s)
        reports = [self._store.get(key).decode() for key in keys]
        past = [self._heard_key(turn - 1, rank) for rank in range(1, self._world)]
        # Whoever reports has read the verdict before, and has no more need to know whether it may write.
        for key in (*keys, self._open_key(turn), self._verdict_key(turn - 1), *past):
            self._store.delete_key(key)
        return reports

    def pronounce(self, turn: int, text: str) -> None:
        """Rank 0: send the verdict of round `turn`."""
        self._store.set(self._verdict_key(turn), text)
        self._pronounced = turn

    def verdict(self, turn: int) -> str:
        """Return rank 0's verdict of round `turn`; longer patience than its own, to hear that it lost its own."""
        key = self._verdict_key(turn)
        self._await([key], "rank 0 did not say how the save ended", 2 * self._patience_s)
        text = self._store.get(key).decode()
        self._store.set(self._heard_key(turn, self._rank), "1")
        return text

    def close(self) -> None:
        """End all waiting; rank 0 first lets the others hear its last verdict, since the store may end with it."""
        if self._pronounced:
            heard = [self._heard_key(self._pronounced, rank) for rank in range(1, self._world)]
            with contextlib.suppress(Exception):  # a rank that is gone, or the store
                self._await(heard, "not every rank heard how the save ended", _FAREWELL_S)
        self._closed.set()

    def _open_key(self, turn: int) -> str:
        return f"{self._keys}/{turn}/open"

    def _report_key(self, turn: int, rank: int) -> str:
        return f"{self._keys}/{turn}/report/{rank}"

    def _verdict_key(self, turn: int) -> str:
        return f"{self._keys}/{turn}/verdict"

    def _heard_key(self, turn: int, rank: int) -> str:
        return f"{self._keys}/{turn}/heard/{rank}"

    def _await(self, keys: Sequence[str], otherwise: str, patience_s: float) -> None:
        """Wait for the keys; CheckpointError says `otherwise` when patience or the writer ends."""
        end, pause = time.monotonic() + patience_s, _FASTEST_S
        for key in keys:
            while not self._store.check([key]):
                if self._closed.is_set():
                    raise CheckpointError(f"{otherwise} before the run ended.")
                if time.monotonic() > end:
                    raise CheckpointError(f"{otherwise} within {patience_s:g} s.")
                time.sleep(pause)
                pause = min(2 * pause, _SLOWEST_S)
