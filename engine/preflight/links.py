"""How fast ranks reach their neighbours along each axis of the mesh: latency and bandwidth, measured over its group."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from engine.mesh import Axis, Mesh
from engine.preflight.finding import FAULT, OK, WARNING, Finding
from engine.preflight.team import Team

_PINGS = 20
_FIRST, _LARGEST = 1 << 16, 1 << 24  # bytes of a message, which grows until one takes _LONG_S
_LONG_S = 0.1
_FAULT_RATE, _WARN_RATE = 12.5e6, 125e6  # bytes/s: links of 100 Mbit/s and of 1 Gbit/s
_FAR_BELOW = 3.0  # times slower than the median of its axis
_WARN_LATENCY_S = 0.02


@dataclass(frozen=True)
class Link:
    """Between two global ranks: latency one way in seconds, and bytes/s."""

    one: int
    other: int
    latency_s: float
    rate: float


def check_links(team: Team, mesh: Mesh) -> list[Finding]:
    """Measure every pair of neighbours of every axis, all groups of an axis at a time."""
    found = []
    for axis in (mesh.pp, mesh.dp, mesh.cp, mesh.tp):
        if axis.size > 1:
            mine = _measure_axis(axis, mesh.device.torch_device)
            everyone = team.gather([[link.one, link.other, link.latency_s, link.rate] for link in mine])
            links = [Link(*values) for of_rank in everyone for values in of_rank]
            found += judge_links(axis.name, links, [team.place(rank) for rank in range(team.world)])
    return found


def judge_links(axis: str, links: Sequence[Link], places: Sequence[str]) -> list[Finding]:
    """Judge the links of one axis: the slowest, and the one that answers last."""
    slow, late = min(links, key=lambda link: link.rate), max(links, key=lambda link: link.latency_s)
    median = statistics.median(link.rate for link in links)
    found = []
    if slow.rate < _WARN_RATE or slow.rate * _FAR_BELOW < median:
        level = FAULT if slow.rate < _FAULT_RATE else WARNING
        found.append(
            Finding(level, "links", f"{axis}: {slow.rate / 1e6:.3g} MB/s between {places[slow.one]} and "
                    f"{places[slow.other]}, where the median is {median / 1e6:.3g} MB/s; look at that cable or "
                    "adapter, or lay out ranks so that this axis stays inside a host")
        )  # fmt: skip
    if late.latency_s > _WARN_LATENCY_S:
        found.append(
            Finding(WARNING, "links", f"{axis}: {late.latency_s * 1e3:.3g} ms between {places[late.one]} and "
                    f"{places[late.other]}; is the way long, or a host busy?")
        )  # fmt: skip
    return found or [
        Finding(OK, "links", f"{axis}: {slow.rate / 1e6:,.0f} MB/s or more, {late.latency_s * 1e6:,.0f} us or less, "
                f"{len(links)} link(s)")
    ]  # fmt: skip


def _measure_axis(axis: Axis, device: torch.device) -> list[Link]:
    """Measure my links along `axis`, even pairs first: then no rank is in two at a time. The lower rank measures."""
    found = []
    for parity in (0, 1):
        leads = axis.rank % 2 == parity and not axis.is_last
        follows = axis.rank % 2 != parity and not axis.is_first
        if leads:
            found.append(_lead(axis, axis.rank + 1, device))
        elif follows:
            _follow(axis, axis.rank - 1, device)
    return found


def _lead(axis: Axis, peer: int, device: torch.device) -> Link:
    word = torch.zeros(1, dtype=torch.int64, device=device)
    trips = []
    for _ in range(_PINGS):
        began = time.perf_counter()
        _send(word, axis, peer)
        _receive(word, axis, peer)
        trips.append(time.perf_counter() - began)
    trip, nbytes, took = statistics.median(trips), _FIRST, 0.0
    while True:
        message = torch.zeros(nbytes, dtype=torch.uint8, device=device)
        _send(word.fill_(nbytes), axis, peer)
        began = time.perf_counter()
        _send(message, axis, peer)
        _receive(word, axis, peer)
        took = max(time.perf_counter() - began - trip / 2, 1e-9)
        if took > _LONG_S or nbytes == _LARGEST:
            break
        nbytes *= 4
    _send(word.fill_(0), axis, peer)
    return Link(axis.ranks[axis.rank], axis.ranks[peer], trip / 2, nbytes / took)


def _follow(axis: Axis, peer: int, device: torch.device) -> None:
    word = torch.zeros(1, dtype=torch.int64, device=device)
    for _ in range(_PINGS):
        _receive(word, axis, peer)
        _send(word, axis, peer)
    while True:
        _receive(word, axis, peer)
        nbytes = int(word.item())
        if nbytes == 0:
            return
        _receive(torch.empty(nbytes, dtype=torch.uint8, device=device), axis, peer)
        _send(word, axis, peer)


def _send(tensor: torch.Tensor, axis: Axis, peer: int) -> None:
    dist.send(tensor, group=axis.group, group_dst=peer)


def _receive(tensor: torch.Tensor, axis: Axis, peer: int) -> None:
    dist.recv(tensor, group=axis.group, group_src=peer)
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)  # NCCL returns when it is queued
