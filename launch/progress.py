"""How far a run has come, and whether starting it again may bring it further."""

from __future__ import annotations

import contextlib
from pathlib import Path

from engine.checkpoint.folder import saved_steps
from engine.flight.reader import read_records
from launch.codes import BUG

Progress = tuple[int, int]
AGAIN = "start the same command again to continue from the newest checkpoint."


def progress(folder: Path | None) -> Progress:
    """Return how far a run has come: its decisions, a rollback is progress too, then the newest step that was saved,
    or begun by all of its ranks."""
    if folder is None:
        return -1, -1
    decided = 0
    with contextlib.suppress(OSError):
        decided = (folder / "ledger.jsonl").read_bytes().count(b',"kind":"commit",')
    begun = min((record.step for record in read_records(folder)), default=0)
    return decided, max([begun, *saved_steps(folder / "checkpoints")[:1]])


def is_stuck(code: int, stuck: int) -> bool:
    """Say whether a failure came too often in one place: `stuck` tries in a row brought no progress.

    A death is given a second try, a bug is not.
    """
    return stuck > (0 if code == BUG else 1)


class Restarts:
    """Decides after each failure whether the ranks are started again, at most `most` times."""

    def __init__(self, folder: Path | None, most: int) -> None:
        self._folder, self._most = folder, most
        self._furthest, self._stuck, self.attempt = progress(folder), 0, 0

    def refusal(self, code: int) -> str | None:
        """Return why the ranks are not started again; None, and count one more attempt, when they are."""
        reached = progress(self._folder)
        self._stuck = 0 if reached > self._furthest else self._stuck + 1
        self._furthest = max(self._furthest, reached)
        if self.attempt == self._most:
            return f"no restart: run.max_restarts={self._most}; {AGAIN}"
        if is_stuck(code, self._stuck):
            return f"no restart: the run came no further than before; find the cause, then {AGAIN}"
        self.attempt += 1
        return None
