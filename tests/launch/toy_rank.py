"""A rank that behaves as its argument says, to try the launcher without an engine."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from engine.errors import DataError, StabilityStop
from engine.flight.recorder import attempt
from launch.rank import leave, run_rank


def behave(what: str, folder: Path) -> int:
    rank = int(os.environ["RANK"])
    if what == "environment":
        names = ("OMP_NUM_THREADS", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "WORLD_SIZE", "LOCAL_RANK")
        (folder / f"rank{rank}").write_text(" ".join(os.environ[name] for name in names))
        return 0
    if what == "mistake-of-all":
        raise DataError("corpus.jsonl is empty; write data.paths=[another].")
    if what == "train":
        return train(rank, folder)
    if rank == 1 and what == "exit":
        os._exit(7)
    return fail_beside_a_peer(what, rank)


def fail_beside_a_peer(what: str, rank: int) -> int:
    """Fail in rank 1 while rank 0 waits for it, and so fails too: that must not be what is shown."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    if rank == 1:
        if what == "mistake-of-one":
            raise DataError("shard 1 is gone; restore it.")
        if what == "bug":
            raise ZeroDivisionError("a bug of ours")
        if what == "ladder":
            raise StabilityStop("10 rollbacks are used up; look at the data.")
        if what == "killed" or (what == "killed-once" and attempt() == 0):
            os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1))
    dist.destroy_process_group()
    return 0


def train(rank: int, folder: Path) -> int:
    """Make steps until asked to stop, then save, counting the signals that arrive meanwhile."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    (folder / f"pid{rank}").write_text(str(os.getpid()))
    while not asked:
        time.sleep(0.02)
    time.sleep(0.5)  # saving; a second signal would be noted here
    (folder / f"saved{rank}").write_text(f"{len(asked)} signals")
    return 0


if __name__ == "__main__":
    sys.exit(leave(run_rank(lambda: behave(sys.argv[1], Path(sys.argv[2])))))
