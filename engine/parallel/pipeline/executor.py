"""Runs one stage's list of actions over its chunks of the model: any schedule, training or evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from engine.flight import phases
from engine.flight.recorder import FLIGHT
from engine.parallel.pipeline.links import Links, Wire
from engine.parallel.pipeline.schedule import Action, Kind, Schedule
from engine.parallel.pipeline.stopwatch import Stopwatch
from engine.parallel.pipeline.traffic import messages

# chunk(hidden, micro_batch) -> hidden, or the loss on the last virtual stage. `hidden` is None on the first.
Chunk = Callable[[Tensor | None, Any], Tensor]


@dataclass(slots=True)
class _InFlight:
    """What a forward pass leaves for its backward pass.

    The output itself is not kept, only its place in the autograd graph, so its storage is free once it is sent.
    """

    hidden: Tensor | None  # input, a leaf that collects the gradient to send back
    output: Tensor | GradientEdge  # the loss on the last virtual stage


class Executor:
    """One stage of a pipeline.

    Losses are summed as they are: chunks scale them (by the tokens of the global batch, say), so that gradients add
    up over micro-batches in the parameters. All stages must be made, and run, in the same order of executors.
    """

    def __init__(
        self,
        *,
        stage: int,
        stages: int,
        chunks: Sequence[Chunk],
        schedule: Schedule,
        activation_group: dist.ProcessGroup | None,
        gradient_group: dist.ProcessGroup | None,
        rank_of: Callable[[int], int],
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        stopwatch: Stopwatch,
    ) -> None:
        """`schedule` lists the actions of all `stages`; without backward actions the executor evaluates.

        `chunks` are the model parts of this stage, chunk c being virtual stage ``c * stages + stage``. The groups
        join the stages of this pipeline and must differ; they may be None for one stage. `rank_of(stage)` is a
        global rank. `shape`, `dtype` and `device` describe every hidden tensor between virtual stages.
        `stopwatch` notes the actions while it is started.
        Raises ValueError for a schedule that deadlocks or does not fit `stages` and `chunks`.
        """
        if len(schedule) != stages:
            raise ValueError(f"the schedule is for {len(schedule)} stages, not {stages}")
        used = 1 + max(action.chunk for action in schedule[stage])
        if used != len(chunks):
            raise ValueError(f"the schedule uses {used} chunks, but stage {stage} has {len(chunks)}")
        self._chunks = list(chunks)
        self._actions = schedule[stage]
        self._micros = 1 + max(action.micro for action in self._actions)
        self._training = any(action.kind is Kind.B for action in self._actions)
        self._last_chunk = len(chunks) - 1 if stage == stages - 1 else None
        self._links = Links(
            stage=stage,
            messages=messages(schedule, len(chunks)),
            groups={Kind.F: activation_group, Kind.B: gradient_group},
            rank_of=rank_of,
            wire=Wire(tuple(shape), dtype, device),
        )
        self._stopwatch = stopwatch
        self._in_flight: dict[tuple[int, int], _InFlight] = {}

    def run(self, micro_batches: Sequence[Any], loss_scale: Tensor | None = None) -> list[Tensor]:
        """Run the schedule over `micro_batches`, one per micro-batch of the schedule.

        Gradients are added to the chunks' parameters. `loss_scale` (0-dim, default 1) multiplies them, being the
        gradient that backward starts from on the last stage; the loss must be of a dtype that holds it. Returns the
        detached, unscaled losses by micro-batch on the last stage, an empty list elsewhere.
        """
        if len(micro_batches) != self._micros:
            raise ValueError(f"the schedule is for {self._micros} micro-batches, not {len(micro_batches)}")
        losses: dict[int, Tensor] = {}
        self._links.start()
        with torch.set_grad_enabled(self._training):
            for action in self._actions:
                if action.kind is Kind.F:
                    self._forward(action, micro_batches[action.micro], losses)
                else:
                    self._backward(action, loss_scale)
        self._links.finish()
        return [losses[micro] for micro in sorted(losses)]

    def _forward(self, action: Action, micro_batch: Any, losses: dict[int, Tensor]) -> None:
        hidden = self._receive(action)
        if hidden is not None and self._training:
            hidden.requires_grad_()
        if self._training:
            FLIGHT.phase(phases.FORWARD)
        start = self._stopwatch.mark()
        output = self._chunks[action.chunk](hidden, micro_batch)
        self._stopwatch.note(action, start)
        is_loss = action.chunk == self._last_chunk
        if is_loss:
            losses[action.micro] = output.detach()
        else:
            self._links.send(action, output.detach())
        if self._training:
            kept = output if is_loss else get_gradient_edge(output)
            self._in_flight[action.micro, action.chunk] = _InFlight(hidden, kept)

    def _backward(self, action: Action, loss_scale: Tensor | None) -> None:
        gradient = self._receive(action)
        left = self._in_flight.pop((action.micro, action.chunk))
        if isinstance(left.output, Tensor) and loss_scale is not None:
            gradient = loss_scale.to(left.output.dtype)
        FLIGHT.phase(phases.BACKWARD)
        start = self._stopwatch.mark()
        torch.autograd.backward(left.output, gradient)
        self._stopwatch.note(action, start)
        if left.hidden is not None:
            assert left.hidden.grad is not None, f"the chunk of {action} does not use its input"
            self._links.send(action, left.hidden.grad)

    def _receive(self, action: Action) -> Tensor | None:
        """Return the input of `action`; evaluation is one phase as a whole."""
        if self._training and self._links.waits_for(action):
            FLIGHT.phase(phases.P2P)
        return self._links.receive(action)
