"""Trimaran's training step against torch's own, one layout at a time, both sides in the same processes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from engine.parallel.pipeline.partition import split_layers
from tests.bench.ours import Trimaran
from tests.bench.pairs import Pairs, Plan, measure
from tests.bench.peers.pipeline import PipelinePeer
from tests.bench.peers.replicas import OneRank, Replicas
from tests.bench.peers.tensor import TensorParallelPeer
from tests.bench.sizes import Sizes, draw_weights, draw_window

CHECKED_STEPS, TOLERANCE = 3, 1e-4


class Side(Protocol):
    """One side of a comparison."""

    def step(self, window: Tensor) -> tuple[float, float]:
        """Train on a global batch [samples, seq + 1]; return its mean loss and the gradient norm on every rank."""
        ...


class Mismatch(Exception):
    """The two sides do not compute the same thing, so no ratio of theirs means anything."""


@dataclass(frozen=True)
class Layout:
    """Ranks, threads of each, Trimaran's `parallel` settings and micro-batch; `peer` names the other side."""

    key: str
    name: str
    peer: str
    world: int
    threads: int
    micro_batch: int
    parallel: dict[str, Any] = field(default_factory=dict)
    compiled: bool = False


def layouts(samples: int) -> list[Layout]:
    """Return the layouts that are compared, for a global batch of `samples`."""
    sequence = {"tp": 2, "sequence_parallel": True}
    return [
        Layout("one", "1 rank", "nn.Module, SDPA, fused AdamW", 1, 2, samples),
        Layout("compile", "1 rank, compiled peer", "torch.compile, fused AdamW", 1, 2, samples, compiled=True),
        Layout("tp", "tp=2", "DTensor, loss_parallel", 2, 1, samples, {"tp": 2}),
        Layout("sp", "tp=2 with sequence parallelism", "DTensor, SequenceParallel", 2, 1, samples, sequence),
        Layout("pp", f"pp=2, {samples} micro-batches", "pipelining.Schedule1F1B", 2, 1, 1, {"pp": 2}),
        Layout("dp", "dp=2", "DistributedDataParallel", 2, 1, samples // 2),
    ]


def make_sides(layout: Layout, sizes: Sizes) -> tuple[Side, Side]:
    """Build Trimaran and its peer with equal weights on this rank."""
    return make_side(layout, sizes, is_ours=True), make_side(layout, sizes, is_ours=False)


def make_side(layout: Layout, sizes: Sizes, *, is_ours: bool, dtype: str = "fp32") -> Side:
    """Build one side; `dtype` is Trimaran's `precision.dtype`."""
    weights = draw_weights(sizes)
    if is_ours:
        return Trimaran(sizes, weights, layout.parallel, layout.micro_batch, dtype)
    if layout.world == 1:
        return OneRank(sizes, weights, compiled=layout.compiled)
    if "tp" in layout.parallel:
        sequence_parallel = layout.parallel.get("sequence_parallel", False)
        return TensorParallelPeer(sizes, weights, sequence_parallel=sequence_parallel)
    if "pp" in layout.parallel:
        return PipelinePeer(sizes, weights, split_layers(sizes.layers, layout.world, None, 0.0, sizes.head_cost))
    return Replicas(sizes, weights)


def compare_precisions(rank: int, world: int, layout: Layout, sizes: Sizes, plan: Plan) -> Pairs:
    """Body of a rank: time Trimaran in bf16 with fp32 masters against Trimaran in fp32."""
    torch.set_num_threads(layout.threads)
    half, single = (make_side(layout, sizes, is_ours=True, dtype=dtype) for dtype in ("bf16", "fp32"))
    return measure(stepper(half, sizes), stepper(single, sizes), plan, dist.barrier)


def compare(rank: int, world: int, layout: Layout, sizes: Sizes, plan: Plan) -> Pairs:
    """Body of a rank: check that both sides agree, then time them."""
    torch.set_num_threads(layout.threads)
    ours, theirs = make_sides(layout, sizes)
    check_equal(ours, theirs, sizes)
    return measure(stepper(ours, sizes), stepper(theirs, sizes), plan, dist.barrier)


def check_equal(ours: Side, theirs: Side, sizes: Sizes) -> None:
    """Raise Mismatch unless loss and gradient norm agree over the first steps, updates included."""
    for step in range(CHECKED_STEPS):
        window = draw_window(sizes, step)
        for what, mine, wanted in zip(("loss", "gradient norm"), ours.step(window), theirs.step(window), strict=True):
            if not abs(mine - wanted) <= TOLERANCE * abs(wanted):
                raise Mismatch(f"step {step}: {what} is {mine:.7g} here and {wanted:.7g} in torch; no ratio is given.")


def stepper(side: Side, sizes: Sizes) -> Callable[[], object]:
    """Return a call that trains on the next of a few batches drawn beforehand."""
    windows: Iterator[Tensor] = itertools.cycle([draw_window(sizes, step) for step in range(CHECKED_STEPS, 8)])
    return lambda: side.step(next(windows))
