"""What an exception says about the run: a mistake, a bug, a peer that is gone, or one that did not come."""

from __future__ import annotations

import time
from pathlib import Path

from engine.errors import EngineError, StabilityStop
from engine.flight.blame import find_culprit
from engine.flight.reader import read_records
from engine.flight.recorder import host_name

USER, STOP, BUG, MEMORY, HANG, ECHO = "user", "stop", "bug", "memory", "hang", "echo"

# Phrases by which torch.distributed says that a peer was gone, or did not come in time.
_ECHOES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
_TIMEOUTS = ("Timed out", "timed out", "Timeout")
_MEMORY = ("can't allocate memory", "not enough memory", "std::bad_alloc", "Cannot allocate memory")


class Hang(Exception):
    """A collective's peers did not come in time; the text is one line that says which and what they do instead."""


def kind_of(error: Exception) -> str:
    """Return what kind of failure an exception of a rank is."""
    import torch
    import torch.distributed as dist

    text = str(error)
    if isinstance(error, EngineError):
        return STOP if isinstance(error, StabilityStop) else USER
    if isinstance(error, Hang):
        return HANG
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(phrase in text for phrase in _MEMORY):
        return MEMORY
    is_lost = isinstance(error, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError)
    if not is_lost and not isinstance(error, RuntimeError):
        return BUG
    if any(phrase in text for phrase in _TIMEOUTS):
        return HANG
    return ECHO if is_lost or any(phrase in text for phrase in _ECHOES) else BUG


def describe_hang(folder: Path) -> str:
    """Return one line on who keeps a run from going on, by the flight records in its `folder` as they are now."""
    records = read_records(folder)
    found = find_culprit(records)
    if found is None:
        return f"a rank did not come on, but {folder}/flight holds no records."
    culprit, why = found
    waited = next((r for r in records if r.waiting is not None and r.rank != culprit.rank), None)
    beside = f"; rank {waited.rank} waits in {waited.waiting.describe()}" if waited and waited.waiting else ""
    now = time.monotonic() if culprit.host == host_name() else None  # no two hosts have the same clock
    return (
        f"rank {culprit.rank} does not come on ({why}): {culprit.describe(now)}{beside}. What each rank "
        f"did last, and its stacks: {folder}/flight."
    )
