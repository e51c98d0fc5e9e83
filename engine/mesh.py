"""Who am I: the mesh of ranks, its axes and every process group.

Axes, outermost first: `pp, dp, cp, tp`, so that tensor-parallel neighbours have adjacent global ranks and sit
on one node. Only this module makes process groups; everything else receives an `Axis` or a group from here.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import torch.distributed as dist

from engine.device import Device
from engine.errors import ConfigError
from engine.flight.recorder import attempt
from engine.network import choose_interface

AXES = ("pp", "dp", "cp", "tp")
HANG_GRACE_S = 5.0  # what tells of a hang second waits this much longer than what should tell of it first


@dataclass(frozen=True)
class Axis:
    """One axis as seen from this rank: how many ranks, which one I am, and the group that connects them.

    `ranks` are the global ranks of the group in axis order. `tags` numbers the point-to-point exchanges over the
    group: all members start them in the same order, so equal numbers belong together.
    """

    name: str
    size: int
    rank: int
    group: dist.ProcessGroup | None
    ranks: tuple[int, ...]
    tags: Iterator[int] = field(default_factory=itertools.count, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        return self.rank == self.size - 1


class Mesh:
    """The ranks of a run as a `pp x dp x cp x tp` grid, with a process group along each axis.

    Attributes: `pp`, `dp`, `cp`, `tp` and `world` are `Axis` objects. `embedding` joins the first and the last
    stage (tied embeddings); `pipeline_groups` are two communicators over pp, one for activations and one for
    gradients, because NCCL matches point-to-point messages by order alone. An axis of size 1 has no group. No
    collective waits longer for its peers than `timeout_s`.
    """

    def __init__(self, *, pp: int, dp: int, cp: int, tp: int, device: Device, timeout_s: float = 600.0) -> None:
        self.device, self._timeout = device, _group_timeout(device, timeout_s)
        world, rank = dist.get_world_size(), dist.get_rank()
        if pp * dp * cp * tp != world:
            raise ConfigError(
                f"parallel.pp*dp*cp*tp = {pp}*{dp}*{cp}*{tp} = {pp * dp * cp * tp}, but {world} ranks were started; "
                f"start {pp * dp * cp * tp} ranks or change parallel.dp."
            )
        self.grid = np.arange(world).reshape(pp, dp, cp, tp)  # numpy: a fake-tensor mode must not see it
        self.pp, self.dp, self.cp, self.tp = (self._axis(name) for name in AXES)
        self.world = Axis("world", world, rank, dist.group.WORLD, tuple(range(world)))
        self.embedding = self._embedding_axis()
        self.pipeline_groups = self._pipeline_groups()

    @property
    def is_first_stage(self) -> bool:
        return self.pp.is_first

    @property
    def is_last_stage(self) -> bool:
        return self.pp.is_last

    def describe(self) -> str:
        """Return the layout in one phrase."""
        sizes = " x ".join(f"{axis.name}={axis.size}" for axis in (self.pp, self.dp, self.cp, self.tp))
        return f"{self.world.size} rank(s): {sizes}"

    def _axis(self, name: str) -> Axis:
        dim = AXES.index(name)
        lines = np.moveaxis(self.grid, dim, -1).reshape(-1, self.grid.shape[dim]).tolist()
        ranks = next(line for line in lines if dist.get_rank() in line)
        return Axis(name, len(ranks), ranks.index(dist.get_rank()), self._own_group(lines), tuple(ranks))

    def _embedding_axis(self) -> Axis:
        """Join the first and last stage of each column; on stages between, an axis of size 1 without a group."""
        columns = self.grid.reshape(self.pp.size, -1)
        ends = columns[[0, -1]].T.tolist() if self.pp.size > 1 else []
        group = self._own_group(ends)
        if not ends or not (self.pp.is_first or self.pp.is_last):
            return Axis("embedding", 1, 0, None, (dist.get_rank(),))
        return Axis("embedding", 2, int(self.pp.is_last), group, (self.pp.ranks[0], self.pp.ranks[-1]))

    def _pipeline_groups(self) -> tuple[dist.ProcessGroup | None, dist.ProcessGroup | None]:
        if self.pp.size == 1:
            return None, None
        columns = self.grid.reshape(self.pp.size, -1).T.tolist()
        return self._own_group(columns), self._own_group(columns)

    def tensor_subgroup(self, size: int) -> Axis:
        """Split tp into runs of `size` neighbours and return mine (ranks that share a kv head, say).

        Collective: every rank must call it, in the same order.
        """
        if size == 1:
            return Axis("tp-part", 1, 0, None, (dist.get_rank(),))
        runs = self.grid.reshape(-1, size).tolist()
        group = self._own_group(runs)
        mine = next(run for run in runs if dist.get_rank() in run)
        return Axis("tp-part", size, mine.index(dist.get_rank()), group, tuple(mine))

    def _own_group(self, groups: list[list[int]]) -> dist.ProcessGroup | None:
        """Make one process group per list of ranks (a collective call) and return mine; None where I am alone.

        torch gives a group its default of 30 minutes, and not the world's time-out, unless it is told.
        """
        own = None
        for ranks in groups:
            group = dist.new_group(ranks, timeout=self._timeout) if len(ranks) > 1 else None
            if dist.get_rank() in ranks:
                own = group
        return own


def _group_timeout(device: Device, timeout_s: float) -> timedelta:
    """NCCL ends a process whose collective is late without saying why: it waits longer than the watchdog does."""
    return timedelta(seconds=timeout_s + (2 * HANG_GRACE_S if device.is_cuda else 0.0))


def join_world(device: Device, timeout_s: float) -> None:
    """Connect this process to its peers through the environment torchrun sets; alone, make a world of one."""
    timeout = _group_timeout(device, timeout_s)
    if not dist.is_torchelastic_launched() and "RANK" not in os.environ:
        dist.init_process_group(device.backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
        return
    given, rank, world = next(dist.rendezvous("env://", timeout=timeout))
    store = _own_store(given, rank, timeout)
    if device.backend == "gloo":
        choose_interface(store, rank, world)
    dist.init_process_group(device.backend, timeout=timeout, store=store, rank=rank, world_size=world)


def _own_store(given: dist.Store, rank: int, timeout: timedelta) -> dist.Store:
    """Return a store that lives as long as rank 0 does; its address is left in the one that the launcher gave.

    torchrun keeps its store when it starts ranks again, with the addresses of dead ones, and takes it along when it
    is killed, while the ranks it leaves behind still have to save.
    """
    key = f"trimaran/start-{attempt()}/store"
    if rank == 0:
        host = os.environ.get("MASTER_ADDR", "localhost")
        store = dist.TCPStore(host, 0, is_master=True, timeout=timeout, wait_for_workers=False)
        given.set(key, f"{host} {store.port}")
        return store
    host, port = given.get(key).decode().split()
    return dist.TCPStore(host, int(port), is_master=False, timeout=timeout)
