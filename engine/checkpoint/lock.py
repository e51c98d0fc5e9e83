"""One process at a time in a run folder: a second one would sweep away what the first is writing.

Whoever takes the lock is about to write into the folder, so this is also where links out of it are refused.
"""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from engine.errors import CheckpointError, ConfigError


class FolderLock:
    """Held until `release`, or until this process ends in any way. ConfigError when another process holds it."""

    def __init__(self, folder: Path) -> None:
        _expect_no_links(folder)
        self._file = open(folder / ".lock", "a+")  # noqa: SIM115 - open as long as the lock is held
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            self._file.close()
            raise ConfigError(
                f"{folder} is in use by {owner}; wait until that run has ended, or write another run.name."
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def _expect_no_links(folder: Path) -> None:
    """Refuse a run folder, perhaps unpacked from elsewhere, whose own files lead a writer to others outside of it.

    Only the folder of checkpoints may be a link, to a larger disk: in it nothing but `step_*` is touched.
    """
    for path in folder.iterdir():
        if path.is_symlink() and path.name != "checkpoints":
            raise CheckpointError(f"{path} is a symbolic link, through which the run would write elsewhere; remove it.")
