"""One all-reduce over every process group of a run: that it ends, and that its sum is right."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from engine.mesh import Mesh
from engine.preflight.finding import FAULT, OK, Finding, shorten
from engine.preflight.team import Team

_ELEMENTS = 1024


def check_groups(team: Team, mesh: Mesh) -> list[Finding]:
    """Sum known numbers over every group that this rank is in."""
    mine: dict[str, str | float] = {}
    groups = {axis.name: (axis.group, axis.ranks) for axis in (mesh.tp, mesh.dp, mesh.cp, mesh.pp, mesh.embedding)}
    activations, gradients = mesh.pipeline_groups
    groups |= {"activations": (activations, mesh.pp.ranks), "gradients": (gradients, mesh.pp.ranks)}
    groups["world"] = (mesh.world.group, mesh.world.ranks)
    for name, (group, ranks) in groups.items():
        if group is None or len(ranks) == 1:
            continue
        try:
            mine[name] = _time_sum(group, ranks, mesh)
        except RuntimeError as error:  # what torch raises for peers that are gone or late
            mine[name] = str(error).strip().splitlines()[0]
            break  # its peers are out of step from here on
    return judge_groups(team.gather(mine), [team.place(rank) for rank in range(team.world)])


def judge_groups(told: Sequence[dict[str, str | float]], places: Sequence[str]) -> list[Finding]:
    """Judge what each rank found by group: seconds of an all-reduce, or what went wrong."""
    found = []
    for name in dict.fromkeys(name for mine in told for name in mine):
        wrong = [rank for rank, mine in enumerate(told) if isinstance(mine.get(name), str)]
        if wrong:
            found.append(
                Finding(FAULT, "groups", f"the all-reduce over {name} of {shorten(places[rank] for rank in wrong)}: "
                        f"{told[wrong[0]][name]}; is a firewall between them, or NCCL_SOCKET_IFNAME or "
                        "GLOO_SOCKET_IFNAME another network's?")
            )  # fmt: skip
    times = {name: seconds for mine in told for name, seconds in mine.items() if not isinstance(seconds, str)}
    if found or not times:
        return found
    spent = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in times.items())
    return [Finding(OK, "groups", f"an all-reduce over each is right: {spent}")]


def _time_sum(group: dist.ProcessGroup, ranks: Sequence[int], mesh: Mesh) -> str | float:
    device = mesh.device
    values = torch.full((_ELEMENTS,), float(dist.get_rank() + 1), device=device.torch_device)
    dist.all_reduce(values.clone(), group=group)  # the first one connects
    device.synchronize()
    began = time.perf_counter()
    dist.all_reduce(values, group=group)
    device.synchronize()
    took = time.perf_counter() - began
    expected = float(sum(rank + 1 for rank in ranks))
    return took if bool((values == expected).all()) else f"the sum is {values[0].item():g} and not {expected:g}"
