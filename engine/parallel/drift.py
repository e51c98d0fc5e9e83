"""Replica drift: weights of which several ranks hold a copy must stay equal bit by bit, and who holds another copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from engine.mesh import Axis, Mesh
from engine.parallel.collectives import all_gather, all_reduce
from engine.parallel.sharding import Piece, pieces_of


def drifted_ranks(weights: Iterable[nn.Parameter], mesh: Mesh) -> tuple[int, ...]:
    """Return the ranks whose copies differ from those of most others (all who differ, where there is no majority).

    Collective over the world, and one synchronisation with the host. Compared are sums of bits per piece: over dp for
    every piece, over tp for those that are replicated there, and over the axis of those that are shared otherwise.
    """
    sums: dict[str, list[Tensor]] = {}
    axes: dict[str, Axis] = {}
    for weight in dict.fromkeys(weights):
        for piece, values in _parts(weight):
            total = bit_sum(values)
            for axis in _holders(piece, mesh):
                sums.setdefault(axis.name, []).append(total)
                axes[axis.name] = axis
    flags = torch.zeros(mesh.world.size, dtype=torch.int64, device=mesh.device.torch_device)
    for name in sorted(sums):
        for rank in _odd_ones(torch.stack(sums[name]), axes[name]):
            flags[rank] = 1
    all_reduce(flags, mesh.world)
    return tuple(flags.nonzero().flatten().tolist())


def bit_sum(values: Tensor) -> Tensor:
    """Return the sum of the bits of `values`, taken as integers: a 0-dim int64 that any flipped bit changes."""
    whole = torch.int64 if values.element_size() == 8 else torch.int32 if values.element_size() == 4 else torch.int16
    return values.detach().contiguous().view(whole).sum(dtype=torch.int64)


def _parts(weight: nn.Parameter) -> Iterator[tuple[Piece, Tensor]]:
    start = 0
    for piece in pieces_of(weight):
        yield piece, weight[start : start + piece.shape[0]]
        start += piece.shape[0]


def _holders(piece: Piece, mesh: Mesh) -> list[Axis]:
    """Return the axes over which this piece has copies."""
    found = [mesh.dp]
    if piece.reduce is not None:
        found.append(piece.reduce)
    if piece.shape == piece.global_shape and (piece.reduce is None or piece.reduce.name == "embedding"):
        found.append(mesh.tp)
    return [axis for axis in found if axis.size > 1]


def _odd_ones(mine_n: Tensor, axis: Axis) -> set[int]:
    """Return the global ranks whose sums are not those that most ranks of the axis have."""
    every = torch.empty(axis.size * mine_n.numel(), dtype=torch.int64, device=mine_n.device)
    all_gather(every, mine_n, axis).wait()
    table = every.view(axis.size, -1)
    odd: set[int] = set()
    for column in (table != table[0]).any(dim=0).nonzero().flatten().tolist():
        values = table[:, column].tolist()
        (common, most), *rest = Counter(values).most_common()
        tie = bool(rest) and rest[0][1] == most
        odd |= {axis.ranks[place] for place, value in enumerate(values) if tie or value != common}
    return odd
