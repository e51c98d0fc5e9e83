"""Ranks as threads that share one store, and states they save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from engine.checkpoint.entry import Entry
from engine.checkpoint.reader import Checkpoint, find_checkpoint
from engine.checkpoint.writer import CheckpointWriter, SaveResult

T = TypeVar("T")


def in_threads(world: int, body: Callable[[int], T]) -> list[T]:
    """Return `body(rank)` of all ranks, run at the same time."""
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(body, range(world)))


def make_writer(folder: Path, *, rank: int = 0, world: int = 1, **options: Any) -> CheckpointWriter:
    """Return a writer with a store of its own, unless `store` is given."""
    defaults = {"keep_last": 2, "keep_every": 0, "asynchronous": True, "patience_s": 20.0}
    if "store" not in options:
        options["store"] = dist.HashStore()
    return CheckpointWriter(folder, rank=rank, world=world, **{**defaults, **options})


def whole(**tensors: Tensor) -> list[Entry]:
    """Return entries that hold all of each tensor."""
    return [Entry(name, tuple(t.shape), (0,) * t.ndim, t) for name, t in tensors.items()]


def save(
    folder: Path, step: int, entries: Sequence[Entry], meta: dict[str, Any] | None = None, **options: Any
) -> SaveResult:
    """Save one checkpoint by one rank and return how that ended."""
    writer = make_writer(folder, **options)
    writer.save(step, entries, meta or {})
    writer.wait()
    writer.close()
    (result,) = writer.poll()
    return result


def find(folder: Path) -> Checkpoint | None:
    """Return what a single rank finds."""
    return find_checkpoint(folder, rank=0, world=1, agree=lambda mine: mine)


def read_all(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return every tensor, in its stored dtype."""
    return {name: checkpoint.whole(name) for name in checkpoint.names()}


def names_in(folder: Path) -> list[str]:
    """Return what lies in a folder."""
    return sorted(path.name for path in folder.iterdir())
