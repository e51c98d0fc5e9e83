"""Silent data corruption: compute a suspicious step once more, and say which rank's machine computed otherwise.

A step is a pure function of weights and batch. Where its kernels are deterministic, gradients that differ in a single
bit between two executions are a machine's fault, not the data's. Which rank's: after the reduce-scatter over dp each
rank still holds its own contribution to the shards of the others, so that its sums of bits per shard tell the ranks
whose own gradients differ from those that only received a wrong sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.mesh import Axis
from engine.parallel.collectives import all_reduce
from engine.step import Gradients


@dataclass(frozen=True)
class Finding:
    """What two executions of one step tell, equal on every rank."""

    ranks: tuple[int, ...]  # that computed differently; empty when both executions agree, or nobody can be named
    agree: bool  # the two executions, bit by bit
    repeats: bool = True  # a third execution agreed with one of them

    def describe(self) -> str:
        """Return a phrase that names the ranks."""
        who = " and ".join(f"rank {rank}" for rank in self.ranks) or "a rank that cannot be told"
        if self.repeats:
            return f"{who} had computed wrongly: of three executions of the step, two are alike"
        return f"{who} computes the same step differently each time: its machine is faulty, or a kernel is not exact"


def recheck(
    first: Gradients, fingerprint: Callable[[], Tensor], again: Callable[[], Gradients], world: Axis, dp: Axis
) -> tuple[Gradients, Finding]:
    """Execute a step `again`, and a third time when the result differs; return the gradients now in the buckets.

    `first` is the execution whose gradients are in the buckets. `fingerprint()` sums the bits of the gradient buffers:
    int64 [buckets, dp shards] (`Buckets.fingerprint`). Collective over the world.
    """
    before = fingerprint()
    second = again()
    after = fingerprint()
    ranks, agree = _compare(first, second, before, after, world, dp)
    if agree:
        return second, Finding((), True)
    third = again()
    last = fingerprint()
    others, repeats = _compare(second, third, after, last, world, dp)
    if not repeats:  # then the second may have been the wrong one
        repeats = _compare(first, third, before, last, world, dp)[1]
    return third, Finding(ranks if repeats else tuple(sorted({*ranks, *others})), False, repeats)


def _compare(
    one: Gradients, two: Gradients, prints: Tensor, others: Tensor, world: Axis, dp: Axis
) -> tuple[tuple[int, ...], bool]:
    """Return the ranks whose own gradients differ (where none do: who received wrong sums), and whether all agree."""
    differs = (prints != others).any(dim=0)  # [dp]
    received = differs[dp.rank].clone()
    differs[dp.rank] = False
    losses = one.loss.view(torch.int64) != two.loss.view(torch.int64)
    marks = torch.zeros(world.size, 3, dtype=torch.int64, device=prints.device)
    marks[world.rank] = torch.stack([differs.any(), received, losses]).to(torch.int64)
    all_reduce(marks, world)
    own, wrong_sum, wrong_loss = (column.nonzero().flatten().tolist() for column in marks.unbind(1))
    return tuple(own or wrong_sum), not (own or wrong_sum or wrong_loss)
