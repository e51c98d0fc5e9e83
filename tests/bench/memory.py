"""Peak resident memory of a process that trains, each side in a process of its own."""

from __future__ import annotations

import resource

import torch

from tests.bench.sizes import Sizes, draw_window
from tests.bench.table import Row
from tests.bench.training import Layout, make_side
from tests.ranks import run_ranks

STEPS = 3


def memory_rows(layout: Layout, sizes: Sizes) -> list[Row]:
    """Compare the peaks of both sides, and what is there before a model is built."""
    idle, ours, theirs = (
        run_ranks(layout.world, peak_of, layout, sizes, which, timeout=600)[0] for which in (None, "ours", "theirs")
    )
    return [
        Row(
            f"peak resident memory, {layout.name} (torch alone: {idle:.2f} GiB)", layout.peer,
            f"{ours:.2f} GiB", f"{theirs:.2f} GiB", f"{theirs / ours:.2f}",
        )
    ]  # fmt: skip


def peak_of(rank: int, world: int, layout: Layout, sizes: Sizes, which: str | None) -> float:
    """Body of a rank: train some steps on one side (None: on none) and return the peak in GiB."""
    torch.set_num_threads(layout.threads)
    if which is not None:
        side = make_side(layout, sizes, is_ours=which == "ours")
        for step in range(STEPS):
            side.step(draw_window(sizes, step))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
