"""Processes started as a user starts them."""

from __future__ import annotations

import os
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
_SET_BY_LAUNCHERS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
)  # fmt: skip


def environment(**extra: str) -> dict[str, str]:
    """Return this process's environment without what a launcher sets, and with `extra`."""
    kept = {key: value for key, value in os.environ.items() if key not in _SET_BY_LAUNCHERS}
    return {**kept, "PYTHONPATH": str(REPO), **extra}
