"""What a checkpoint costs training: the stall of an asynchronous save, and steps while it is being written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from engine.checkpoint.state import entries
from engine.checkpoint.writer import CheckpointWriter
from tests.bench.ours import Trimaran
from tests.bench.pairs import Pairs, Plan, seconds_of
from tests.bench.sizes import Sizes, draw_weights, draw_window
from tests.bench.training import Layout


def stall(rank: int, world: int, layout: Layout, sizes: Sizes, plan: Plan) -> Pairs:
    """Body of a rank: the time `save` takes from training, against one copy of the state into ready memory."""
    torch.set_num_threads(layout.threads)
    ours = Trimaran(sizes, draw_weights(sizes), layout.parallel, layout.micro_batch)
    held = list(entries(ours.stepper.optimizer))
    state = [entry.tensor for entry in held]
    copies = [tensor.clone() for tensor in state]

    def copy() -> None:
        for target, tensor in zip(copies, state, strict=True):
            target.copy_(tensor)

    samples: list[tuple[float, float]] = []
    with writer_of(ours) as writer:
        for number in range(plan.warmup + plan.pairs):
            save_s = seconds_of(partial(writer.save, number, held, {}))
            finish(writer)
            samples.append((save_s, seconds_of(copy)))
    return Pairs.of(samples[plan.warmup :])


def steps_while_writing(rank: int, world: int, layout: Layout, sizes: Sizes, plan: Plan) -> Pairs:
    """Body of a rank: a training step right after `save` returned, against one with nothing being written."""
    torch.set_num_threads(layout.threads)
    ours = Trimaran(sizes, draw_weights(sizes), layout.parallel, layout.micro_batch)
    window, held = draw_window(sizes, 0), list(entries(ours.stepper.optimizer))
    samples: list[tuple[float, float]] = []
    with writer_of(ours) as writer:
        for number in range(plan.warmup + plan.pairs):
            writer.save(number, held, {})
            during = seconds_of(partial(ours.step, window))
            finish(writer)
            samples.append((during, seconds_of(partial(ours.step, window))))
    return Pairs.of(samples[plan.warmup :])


@contextmanager
def writer_of(ours: Trimaran) -> Iterator[CheckpointWriter]:
    """Yield an asynchronous writer into a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(
            Path(folder), rank=ours.stepper.mesh.world.rank, world=ours.stepper.mesh.world.size,
            store=dist.distributed_c10d._get_default_store(), keep_last=1, keep_every=0, asynchronous=True,
        )  # fmt: skip
        try:
            yield writer
        finally:
            writer.close()


def finish(writer: CheckpointWriter) -> None:
    """Wait for the save; one that failed measures nothing."""
    writer.wait()
    for result in writer.poll():
        if not result.ok:
            raise RuntimeError(f"checkpoint {result.step} was not saved: {result.error}")
