"""Transport between stages: messages of fixed shape over torch.distributed, matched without handshakes.

gloo matches by tag, NCCL by order alone; `traffic.messages` gives both, and both are always honoured, so that one
code path serves every backend. Activations and gradients travel in separate process groups (two lanes), because
their orders interleave differently on the two sides of a link.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from engine.flight.recorder import FLIGHT, Entry
from engine.parallel.pipeline.schedule import Action, Kind
from engine.parallel.pipeline.traffic import Message

_AHEAD = 1  # receives per lane that wait for their message while the stage computes


@dataclass(frozen=True, slots=True)
class Wire:
    """What every message between stages looks like."""

    shape: Sequence[int]
    dtype: torch.dtype
    device: torch.device

    def empty(self) -> Tensor:
        return torch.empty(tuple(self.shape), dtype=self.dtype, device=self.device)


@dataclass(slots=True)
class _Transfer:
    """A started send or receive; `tensor` stays alive until the transfer is done."""

    message: Message
    tensor: Tensor
    work: dist.Work
    entry: Entry

    def wait(self) -> None:
        FLIGHT.wait(self.entry)
        self.work.wait()
        FLIGHT.done(self.entry)


class _Lane:
    """The messages of one kind that touch one stage, started strictly in their total order."""

    def __init__(
        self,
        stage: int,
        messages: list[Message],
        group: dist.ProcessGroup | None,
        rank_of: Callable[[int], int],
        wire: Wire,
    ) -> None:
        self._stage, self._messages, self._group, self._rank_of, self._wire = stage, messages, group, rank_of, wire
        self._next = 0
        self._receiving: dict[int, _Transfer] = {}  # by the order of the message

    def start(self) -> None:
        """Begin a new run of the schedule."""
        if self._receiving:
            raise RuntimeError("a pipeline run was left half way; its links cannot be used again")
        self._next = 0

    def post_until(self, order: int) -> None:
        """Start the receives that precede `order`."""
        while self._next < len(self._messages) and self._messages[self._next].order < order:
            self._post_receive()

    def post_ahead(self) -> None:
        """Start receives ahead of need, as far as the order and `_AHEAD` allow."""
        while len(self._receiving) < _AHEAD and self._next < len(self._messages):
            if self._messages[self._next].receiver != self._stage:
                return
            self._post_receive()

    def send(self, message: Message, tensor: Tensor) -> _Transfer:
        self.post_until(message.order)
        self._advance(message)
        peer = self._rank_of(message.receiver)
        entry = FLIGHT.start("send", "pp", tensor.nbytes, peer)
        work = dist.isend(tensor, peer, group=self._group, tag=message.tag)
        assert work is not None, "this rank is not in the group of its own pipeline"
        return _Transfer(message, tensor, work, entry)

    def receive(self, message: Message) -> Tensor:
        """Wait for `message`; everything that precedes it must have been started."""
        transfer = self._receiving.pop(message.order)
        transfer.wait()
        return transfer.tensor

    def _post_receive(self) -> None:
        message = self._messages[self._next]
        assert message.receiver == self._stage, f"{message} should have been sent before"
        self._advance(message)
        tensor = self._wire.empty()
        peer = self._rank_of(message.sender)
        entry = FLIGHT.start("receive", "pp", tensor.nbytes, peer)
        work = dist.irecv(tensor, peer, group=self._group, tag=message.tag)
        assert work is not None, "this rank is not in the group of its own pipeline"
        self._receiving[message.order] = _Transfer(message, tensor, work, entry)

    def _advance(self, message: Message) -> None:
        assert self._messages[self._next] is message, f"{message} is out of order"
        self._next += 1


class Links:
    """All links of one stage, for one schedule.

    With NCCL the constructor connects the stages, so all of them must make their links in the same order.
    """

    def __init__(
        self,
        *,
        stage: int,
        messages: Sequence[Message],
        groups: Mapping[Kind, dist.ProcessGroup | None],
        rank_of: Callable[[int], int],
        wire: Wire,
    ) -> None:
        """`messages` are those of the whole schedule, `groups` the process group of each kind of message (not used
        where a stage has no other to talk to), `rank_of(stage)` the global rank of a stage."""
        self._stage = stage
        self._inbox = {m.used_by: m for m in messages if m.receiver == stage}
        self._outbox = {m.produced_by: m for m in messages if m.sender == stage}
        between = [m for m in messages if m.sender != m.receiver]
        _connect(stage, between, groups, rank_of, wire.device)
        mine = [m for m in between if stage in (m.sender, m.receiver)]
        self._lanes = {
            kind: _Lane(stage, [m for m in mine if m.kind is kind], groups[kind], rank_of, wire) for kind in Kind
        }
        self._local: dict[Action, Tensor] = {}  # handed from chunk to chunk of this stage, by the action that uses it
        self._sending: list[_Transfer] = []

    def start(self) -> None:
        """Begin a run of the schedule."""
        for lane in self._lanes.values():
            lane.start()
            lane.post_ahead()

    def waits_for(self, action: Action) -> bool:
        """Say whether the input of `action` comes from another stage."""
        message = self._inbox.get(action)
        return message is not None and message.sender != self._stage

    def receive(self, action: Action) -> Tensor | None:
        """Return the input of `action`, a tensor of the wire's shape; None where the pipeline begins."""
        message = self._inbox.get(action)
        if message is None:
            return None
        if message.sender == self._stage:
            return self._local.pop(action)
        for lane in self._lanes.values():
            lane.post_until(message.order + 1)
        tensor = self._lanes[message.kind].receive(message)
        self._retire(message)
        for lane in self._lanes.values():
            lane.post_ahead()
        return tensor

    def send(self, action: Action, tensor: Tensor) -> None:
        """Hand the result of `action` on; the tensor must not change afterwards."""
        message = self._outbox[action]
        if message.receiver == self._stage:
            self._local[message.used_by] = tensor
            return
        lane = self._lanes[message.kind]
        self._sending.append(lane.send(message, tensor.contiguous()))
        lane.post_ahead()

    def finish(self) -> None:
        """Wait for the sends that are still under way."""
        for transfer in self._sending:
            transfer.wait()
        self._sending.clear()

    def _retire(self, received: Message) -> None:
        """Let go of sends that are done, without ever blocking.

        NCCL reports completion; gloo only when waited for. But a message from a stage also proves that it had
        received everything it used before: waiting for those sends returns at once.
        """
        under_way = []
        for transfer in self._sending:
            sent = transfer.message
            if sent.receiver == received.sender and sent.used_at <= received.produced_at:
                transfer.wait()
            elif not transfer.work.is_completed():
                under_way.append(transfer)
        self._sending = under_way


def _connect(
    stage: int,
    messages: Sequence[Message],
    groups: Mapping[Kind, dist.ProcessGroup | None],
    rank_of: Callable[[int], int],
    device: torch.device,
) -> None:
    """Open the two-rank communicators that NCCL otherwise makes, blocking both hosts, at the first message.

    A receive started ahead of need would then block its host before it has sent what the peer is waiting for. All
    stages open their pairs in one order, so that here nobody waits in a circle.
    """
    for kind in Kind:
        pairs = {tuple(sorted((m.sender, m.receiver))) for m in messages if m.kind is kind}
        group = groups[kind]
        if not pairs or "nccl" not in dist.get_backend(group):  # it may be one of several, "cpu:gloo,cuda:nccl"
            continue
        for low, high in sorted(pair for pair in pairs if stage in pair):
            token = torch.zeros(1, device=device)
            work = dist.isend(token, rank_of(high), group) if stage == low else dist.irecv(token, rank_of(low), group)
            assert work is not None, "this rank is not in the group of its own pipeline"
            work.wait()
