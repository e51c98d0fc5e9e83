"""A small float64 model cut into virtual stages, its plain one-process oracle, and random valid schedules."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.device import Device
from engine.parallel.pipeline import schedule as sch
from engine.parallel.pipeline.executor import Executor
from engine.parallel.pipeline.schedule import Action, Kind, Schedule
from engine.parallel.pipeline.stopwatch import Stopwatch

ROWS, WIDTH = 3, 4


class Toy(nn.Module):
    """One virtual stage: ``hidden, micro_batch -> hidden``, or the loss on the last one; `hidden` is [ROWS, WIDTH].

    Its hidden output is a transposed view, so that what is sent, and the gradient of it, is not contiguous.
    """

    def __init__(self, virtual: int, count: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(virtual)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64))
        self.is_first, self.is_last = virtual == 0, virtual == count - 1

    def forward(self, hidden: Tensor | None, micro_batch: dict[str, Tensor]) -> Tensor:
        assert (hidden is None) == self.is_first
        x = micro_batch["x"] if hidden is None else hidden
        y = torch.tanh(self.weight @ x.t()).t() + x
        return (y - micro_batch["y"]).square().sum() / 7 if self.is_last else y


def batch(micros: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(99)
    draw = lambda: torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)  # noqa: E731
    return [{"x": draw(), "y": draw()} for _ in range(micros)]


def oracle(virtuals: int, micros: int) -> tuple[list[float], list[Tensor]]:
    """Return the loss of every micro-batch and the gradient of every virtual stage, without any pipeline."""
    model = [Toy(v, virtuals) for v in range(virtuals)]
    losses = []
    for micro_batch in batch(micros):
        hidden = None
        for part in model:
            hidden = part(hidden, micro_batch)
        assert hidden is not None
        hidden.backward()
        losses.append(hidden.item())
    return losses, [_gradient(part) for part in model]


def _gradient(part: Toy) -> Tensor:
    assert part.weight.grad is not None
    return part.weight.grad


@dataclass
class Stage:
    """One stage of the toy pipeline: its chunks and an executor for a schedule."""

    stage: int
    schedule: Schedule
    chunks: int
    groups: tuple[Any, Any]
    stopwatch: Stopwatch = field(default_factory=lambda: Stopwatch(Device(torch.device("cpu"), "gloo")))

    def __post_init__(self) -> None:
        stages = len(self.schedule)
        self.parts = [Toy(c * stages + self.stage, stages * self.chunks) for c in range(self.chunks)]
        self.executor = Executor(
            stage=self.stage,
            stages=stages,
            chunks=self.parts,
            schedule=self.schedule,
            activation_group=self.groups[0],
            gradient_group=self.groups[1],
            rank_of=lambda stage: stage,
            shape=(ROWS, WIDTH),
            dtype=torch.float64,
            device=torch.device("cpu"),
            stopwatch=self.stopwatch,
        )

    def run(self, micros: int, loss_scale: float | None = None) -> tuple[list[float], list[Any]]:
        """Return the losses and the gradients (numpy) of one step."""
        for part in self.parts:
            part.weight.grad = None
        scale = None if loss_scale is None else torch.tensor(loss_scale, dtype=torch.float32)
        losses = self.executor.run(batch(micros), scale)
        assert all(not loss.requires_grad for loss in losses)
        grads = [part.weight.grad.numpy() for part in self.parts if part.weight.grad is not None]
        return [loss.item() for loss in losses], grads


def random_schedule(seed: int, stages: int, micros: int, chunks: int) -> Schedule:
    """Return a valid schedule: in random order, some stage runs some action whose inputs exist.

    Each action has its own, very uneven, chance to be next, so that stages run far ahead of one another.
    """
    draw = random.Random(seed)
    schedule: Schedule = [[] for _ in range(stages)]
    done: list[set[Action]] = [set() for _ in range(stages)]
    left = [
        (stage, Action(kind, micro, chunk))
        for stage in range(stages)
        for kind in Kind
        for micro in range(micros)
        for chunk in range(chunks)
    ]

    favoured = {kind: draw.random() for kind in Kind}
    chance = {item: favoured[item[1].kind] * draw.random() ** 3 + 1e-9 for item in left}

    def is_ready(stage: int, action: Action) -> bool:
        before = sch.source(stages, chunks, stage, action)
        own = action.kind is Kind.F or Action(Kind.F, action.micro, action.chunk) in done[stage]
        return own and (before is None or before[1] in done[before[0]])

    while left:
        ready = [item for item in left if is_ready(*item)]
        stage, action = draw.choices(ready, [chance[item] for item in ready])[0]
        schedule[stage].append(action)
        done[stage].add(action)
        left.remove((stage, action))
    return schedule
