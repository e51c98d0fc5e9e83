"""A run folder has one user at a time, and a dead one does not count."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.checkpoint.lock import FolderLock
from engine.errors import ConfigError

HOLD = """
import sys, time
from pathlib import Path
from engine.checkpoint.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_told_who_is_there_until_that_one_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"in use by process {holder.pid} on .*another run\.name"):
            FolderLock(tmp_path)
        holder.kill()
        holder.wait()
    lock = FolderLock(tmp_path)
    assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
    lock.release()
    FolderLock(tmp_path).release()
