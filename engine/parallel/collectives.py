"""Collectives over one mesh axis, with handles to wait on.

A collective over an axis of size 1 is free. `reduce_scatter` and `all_gather` go through NCCL's own
collectives on CUDA. On gloo they are direct exchanges between pairs: each rank sends every peer the chunk it
owns and adds what it receives in rank order, so that the sum does not depend on timing (gloo's own versions
also took 2 to 3 times as long for 80 MB between two ranks).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.flight.recorder import FLIGHT, Entry
from engine.mesh import Axis

SUM, MAX, MIN = dist.ReduceOp.SUM, dist.ReduceOp.MAX, dist.ReduceOp.MIN


class Handle:
    """Something in flight; `wait()` returns when its result may be used."""

    def __init__(self, works: list[Any], finish: Callable[[], None] | None = None, entry: Entry | None = None) -> None:
        self._works, self._finish, self._entry = works, finish, entry

    def wait(self) -> None:
        if self._entry is not None:
            FLIGHT.wait(self._entry)
        for work in self._works:
            work.wait()
        if self._entry is not None:
            FLIGHT.done(self._entry)
        if self._finish is not None:
            self._finish()
        self._works, self._finish, self._entry = [], None, None


DONE = Handle([])


def all_reduce(tensor: Tensor, axis: Axis, op: Any = SUM, asynchronous: bool = False) -> Handle:
    """Reduce `tensor` in place over `axis`."""
    if axis.size == 1:
        return DONE
    entry = FLIGHT.start("all_reduce", axis.name, tensor.nbytes, waits=not asynchronous)
    work = dist.all_reduce(tensor, op=op, group=axis.group, async_op=asynchronous)
    if asynchronous:
        return Handle([work], entry=entry)
    FLIGHT.done(entry)
    return DONE


def reduce_scatter(output: Tensor, tensor: Tensor, axis: Axis) -> Handle:
    """Sum `tensor` (contiguous, `axis.size` equal chunks along dim 0) over `axis`; chunk `axis.rank` -> `output`.

    `output` may be the rank's own chunk of `tensor`, whose content is spent.
    """
    chunks = tensor.chunk(axis.size)
    if axis.size == 1:
        if output.data_ptr() != tensor.data_ptr():
            output.copy_(tensor)
        return DONE
    entry = FLIGHT.start("reduce_scatter", axis.name, tensor.nbytes)
    if not _pairwise(axis):
        return Handle([dist.reduce_scatter_single(output, tensor, group=axis.group, async_op=True)], entry=entry)
    received = {peer: torch.empty_like(chunks[axis.rank]) for peer in range(axis.size) if peer != axis.rank}

    def add_up() -> None:
        parts = [received.get(peer, chunks[axis.rank]) for peer in range(axis.size)]
        total = parts[0]
        for part in parts[1:-1]:
            total.add_(part)
        torch.add(total, parts[-1], out=output)

    return Handle(_exchange(axis, {peer: chunks[peer] for peer in received}, received), add_up, entry)


def all_gather(output: Tensor, tensor: Tensor, axis: Axis) -> Handle:
    """Concatenate every rank's `tensor` along dim 0 into `output`; `tensor` may be its own chunk of `output`."""
    mine = output.chunk(axis.size)[axis.rank]
    if mine.data_ptr() != tensor.data_ptr():
        mine.copy_(tensor)
    if axis.size == 1:
        return DONE
    entry = FLIGHT.start("all_gather", axis.name, output.nbytes)
    if not _pairwise(axis):
        return Handle([dist.all_gather_single(output, mine, group=axis.group, async_op=True)], entry=entry)
    chunks = output.chunk(axis.size)
    peers = [peer for peer in range(axis.size) if peer != axis.rank]
    return Handle(_exchange(axis, dict.fromkeys(peers, mine), {peer: chunks[peer] for peer in peers}), entry=entry)


def broadcast_bytes(data: bytes, axis: Axis, device: torch.device) -> bytes:
    """Return the first rank's `data` on every rank of `axis`."""
    if axis.size == 1:
        return data
    entry = FLIGHT.start("broadcast", axis.name, len(data), waits=True)
    size = torch.tensor(len(data), device=device)
    dist.broadcast(size, group=axis.group, group_src=0)
    content = torch.empty(int(size.item()), dtype=torch.uint8, device=device)
    if axis.is_first:
        content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else content)
    dist.broadcast(content, group=axis.group, group_src=0)
    FLIGHT.done(entry)
    return bytes(content.tolist())


def _pairwise(axis: Axis) -> bool:
    return dist.get_backend(axis.group) == "gloo"


def _exchange(axis: Axis, outgoing: dict[int, Tensor], incoming: dict[int, Tensor]) -> list[Any]:
    works: list[Any] = []
    tag = next(axis.tags)
    for step in range(1, axis.size):  # start with the next neighbour, so that no rank is everybody's first peer
        peer = (axis.rank + step) % axis.size
        works.append(dist.isend(outgoing[peer], group=axis.group, group_dst=peer, tag=tag))
        peer = (axis.rank - step) % axis.size
        works.append(dist.irecv(incoming[peer], group=axis.group, group_src=peer, tag=tag))
    return works


def gather_sequence(x_bsh: Tensor, axis: Axis) -> Tensor:
    """Concatenate sequence shards [b, s/size, h] of all ranks to [b, s, h]."""
    if axis.size == 1:
        return x_bsh
    b, s, h = x_bsh.shape
    parts = x_bsh.new_empty(axis.size * b, s, h)
    all_gather(parts, x_bsh.contiguous(), axis).wait()
    return parts.view(axis.size, b, s, h).transpose(0, 1).reshape(b, axis.size * s, h)


def start_scatter_sequence(x_bsh: Tensor, axis: Axis) -> tuple[Tensor, Handle]:
    """Sum [b, s, h] over the ranks and keep my sequence shard [b, s/size, h]; ready when the handle is waited on."""
    if axis.size == 1:
        return x_bsh, DONE
    b, s, h = x_bsh.shape
    parts = x_bsh.view(b, axis.size, s // axis.size, h).transpose(0, 1).contiguous()
    shard = x_bsh.new_empty(b, s // axis.size, h)
    return shard, reduce_scatter(shard, parts.view(axis.size * b, s // axis.size, h), axis)
