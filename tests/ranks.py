"""The one harness for tests on several gloo ranks.

`run_ranks(world, body, *args)` calls `body(rank, world, *args)` in `world` fresh processes that share a
gloo process group, and returns their results in rank order. Processes are forked from a server that has
already imported torch, so a rank starts in milliseconds; each runs on one thread. A rank that raises, dies
or outlives the timeout fails the test with its traceback and takes the other ranks down.
"""

from __future__ import annotations

import faulthandler
import multiprocessing as mp
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from queue import Empty
from typing import Any

_context = mp.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch.distributed", "numpy", "engine.errors"])


def _rank_main(
    body: Callable[..., Any], rank: int, world: int, folder: str, timeout: float, queue: Any, args: Any
) -> None:
    import torch
    import torch.distributed as dist

    faulthandler.dump_traceback_later(timeout, exit=False, file=sys.stderr)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    try:
        store = dist.FileStore(os.path.join(folder, "store"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout))
        result = body(rank, world, *args)
        dist.barrier()
        queue.put((rank, True, result))
    except BaseException:
        queue.put((rank, False, traceback.format_exc()))
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()
        if dist.is_initialized():
            dist.destroy_process_group()


def run_ranks(world: int, body: Callable[..., Any], *args: Any, timeout: float = 120.0) -> list[Any]:
    """Run `body(rank, world, *args)` on `world` gloo ranks; return the results in rank order.

    `body` is a function at module level; its arguments and result must be picklable (send tensors back as
    numpy arrays or floats).
    """
    queue = _context.Queue()
    results: dict[int, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            _context.Process(target=_rank_main, args=(body, rank, world, folder, timeout, queue, args), daemon=True)
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        try:
            _collect(queue, ranks, results, time.monotonic() + timeout + 10)
        finally:
            for process in ranks:
                if process.is_alive() and len(results) < world:
                    process.kill()
                process.join(timeout=10)
                if process.is_alive():
                    process.kill()
    return [results[rank] for rank in range(world)]


def _collect(queue: Any, ranks: list[Any], results: dict[int, Any], deadline: float) -> None:
    """Wait for one result per rank; raise AssertionError for the first failure, death or timeout."""
    while len(results) < len(ranks):
        try:
            rank, ok, value = queue.get(timeout=0.2)
        except Empty:  # look for silent deaths and the deadline
            dead = [r for r, p in enumerate(ranks) if p.exitcode not in (None, 0) and r not in results]
            if dead and queue.empty():
                raise AssertionError(f"rank {dead[0]} died with exit code {ranks[dead[0]].exitcode}") from None
            if time.monotonic() > deadline:
                missing = sorted(set(range(len(ranks))) - set(results))
                raise AssertionError(f"timeout: ranks {missing} did not finish") from None
            continue
        if not ok:
            raise AssertionError(f"rank {rank} failed:\n{value}")
        results[rank] = value
