"""Who sits where: axes, groups and the neighbours that share kv heads or tied embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from engine.device import Device
from engine.errors import ConfigError
from engine.mesh import Mesh
from tests.ranks import run_ranks

CPU = Device(torch.device("cpu"), "gloo")


def look(rank: int, world: int, layout: dict[str, int]) -> dict[str, Any]:
    mesh = Mesh(**layout, cp=1, device=CPU)
    part = mesh.tensor_subgroup(2) if layout["tp"] >= 2 else None
    sums = {}
    for axis in (mesh.pp, mesh.dp, mesh.tp, mesh.embedding, *([part] if part else [])):
        total = torch.tensor(float(rank))
        if axis.group is not None:
            dist.all_reduce(total, group=axis.group)
        sums[axis.name] = (total.item(), float(sum(axis.ranks)))
    return {
        "coordinates": (mesh.pp.rank, mesh.dp.rank, mesh.tp.rank), "tp": mesh.tp.ranks, "pp": mesh.pp.ranks,
        "embedding": mesh.embedding.size, "sums": sums, "part": part.ranks if part else None,
    }  # fmt: skip


def test_tensor_neighbours_are_adjacent_and_every_group_is_what_it_says() -> None:
    told = run_ranks(8, look, {"pp": 2, "dp": 2, "tp": 2})
    for rank, seen in enumerate(told):
        assert seen["coordinates"] == (rank // 4, rank // 2 % 2, rank % 2)
        assert seen["tp"] == (rank - rank % 2, rank - rank % 2 + 1)
        assert seen["pp"] == (rank % 4, rank % 4 + 4)
        assert seen["part"] == seen["tp"]
        assert all(found == expected for found, expected in seen["sums"].values()), seen


def test_only_the_end_stages_share_embeddings() -> None:
    told = run_ranks(3, look, {"pp": 3, "dp": 1, "tp": 1})
    assert [seen["embedding"] for seen in told] == [2, 1, 2]


def refuse(rank: int, world: int) -> str:
    with pytest.raises(ConfigError) as caught:
        Mesh(pp=2, dp=1, cp=1, tp=2, device=CPU)
    return str(caught.value)


def test_a_layout_of_another_size_is_refused() -> None:
    assert "= 4, but 2 ranks were started" in run_ranks(2, refuse)[0]
