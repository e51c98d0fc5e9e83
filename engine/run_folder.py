"""The folder of a run: one process group's at a time, with the tokenizer that its texts were cut by."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from engine.checkpoint.lock import FolderLock
from engine.errors import CheckpointError, explained


class RunFolder:
    """Makes `path` if need be, and holds its lock on the rank that writes. DiskError when it cannot be written."""

    def __init__(self, path: Path, *, is_writer: bool) -> None:
        self.path = path
        with self.explained():
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(path) if is_writer else None

    def explained(self) -> AbstractContextManager[None]:
        """Answer what cannot be written inside with one line; once training, only saves tell of it."""
        return explained(
            f"the run folder {self.path} cannot be written", "make room there, or write another run.name or run.root"
        )

    def keep_tokenizer(self, file: Path, *, continues: bool) -> None:
        """Copy the tokenizer into the folder, where what is trained on must not change under a run."""
        kept = self.path / "tokenizer.json"
        if continues and kept.exists() and kept.read_bytes() != file.read_bytes():
            raise CheckpointError(
                f"{self.path} was trained with another tokenizer than {file}; write data.tokenizer={kept}, or "
                "another run.name to start afresh."
            )
        if file.resolve() != kept.resolve():
            shutil.copyfile(file, kept)

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.release()
