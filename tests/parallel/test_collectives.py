"""Collectives with handles against their definition, several in flight, own chunks in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.device import Device
from engine.mesh import Mesh
from engine.parallel.collectives import (
    MAX,
    all_gather,
    all_reduce,
    gather_sequence,
    reduce_scatter,
    start_scatter_sequence,
)
from engine.parallel.sharding import share
from tests.ranks import run_ranks


def tensor(rank: int, salt: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(100 * salt + rank), dtype=torch.float64)


def body(rank: int, world: int) -> dict[str, Any]:
    axis = Mesh(pp=1, dp=world, cp=1, tp=1, device=Device(torch.device("cpu"), "gloo")).dp
    inputs = [[tensor(r, salt, 4 * world) for r in range(world)] for salt in range(3)]
    wholes = [inputs[salt][rank].clone() for salt in range(3)]
    mine = slice(4 * rank, 4 * rank + 4)
    handles = [reduce_scatter(whole[mine], whole, axis) for whole in wholes]  # in place, three in flight
    for handle in reversed(handles):
        handle.wait()
    scattered = all(torch.allclose(w[mine], sum(parts)[mine]) for w, parts in zip(wholes, inputs, strict=True))
    gathered = torch.empty(4 * world, dtype=torch.float64)
    all_gather(gathered, inputs[0][rank][:4].clone(), axis).wait()
    in_place = torch.zeros(4 * world, dtype=torch.float64)
    in_place[mine] = inputs[0][rank][:4]
    all_gather(in_place, in_place[mine], axis).wait()
    expected = torch.cat([part[:4] for part in inputs[0]])
    largest = inputs[1][rank].clone()
    all_reduce(largest, axis, MAX, asynchronous=True).wait()
    hidden = [tensor(r, 9, 2, 3 * world, 5) for r in range(world)]
    shard, handle = start_scatter_sequence(hidden[rank], axis)
    handle.wait()
    return {
        "scattered": scattered,
        "gathered": torch.equal(gathered, expected),
        "in place": torch.equal(in_place, expected),
        "max": torch.equal(largest, torch.stack(inputs[1]).amax(0)),
        "scatter sequence": torch.allclose(shard, sum(hidden)[:, 3 * rank : 3 * rank + 3]),
        "gather sequence": torch.allclose(gather_sequence(shard, axis), sum(hidden)),
    }


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_collectives_equal_their_definition(world: int) -> None:
    for told in run_ranks(world, body):
        assert all(told.values()), told


def test_shares_cover_everything_once() -> None:
    from engine.mesh import Axis

    for total in (0, 1, 5, 61, 64):
        for size in (1, 2, 3, 4, 8):
            ranges = [share(total, Axis("tp", size, r, None, tuple(range(size)))) for r in range(size)]
            covered = [item for start, stop in ranges for item in range(start, stop)]
            assert covered == list(range(total))
