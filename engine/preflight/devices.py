"""GPUs as NVIDIA's driver sees them (nvidia-ml-py), one for each rank and nobody else's; cores where there are none."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from engine.device import Device
from engine.monitor.nvml import Nvml
from engine.preflight.finding import FAULT, OK, WARNING, Finding, by_value, shorten, size
from engine.preflight.team import Team

_HOT_C = 85  # degrees Celsius at which GPUs begin to slow down
_OTHERS = 2 * 2**30  # bytes in use on a GPU, beyond what a context and NCCL take, that must be somebody else's


def check_devices(team: Team, device: Device) -> list[Finding]:
    """Look at each rank's device."""
    if device.is_cuda:
        return judge_gpus(team.gather(_gpu(device)), [team.place(rank) for rank in range(team.world)])
    return judge_cores(team.gather(len(os.sched_getaffinity(0))), team.hosts)


def _gpu(device: Device) -> dict[str, Any]:
    free, total = torch.cuda.mem_get_info(device.torch_device)
    properties = torch.cuda.get_device_properties(device.torch_device)
    used = total - free - torch.cuda.memory_reserved(device.torch_device)
    return {"name": properties.name, "uuid": str(properties.uuid), "total": total, "used": used,
            **Nvml(device).readings()}  # fmt: skip


def judge_gpus(gpus: Sequence[dict[str, Any]], places: Sequence[str]) -> list[Finding]:
    """Judge one GPU per rank: its name, uuid, memory in all and in use (bytes), and what NVML could read."""
    found: list[Finding] = []

    def add(level: str, which: list[bool], text: str, advice: str) -> None:
        if any(which):
            found.append(Finding(level, "devices", f"{shorten(p for p, w in zip(places, which, strict=True) if w)} "
                                 f"{text}; {advice}"))  # fmt: skip

    shared = Counter(gpu["uuid"] for gpu in gpus)
    add(FAULT, [shared[gpu["uuid"]] > 1 for gpu in gpus], "have a GPU together", "start one rank per GPU")
    most = size(max(gpu["used"] for gpu in gpus))
    add(FAULT, [gpu["used"] > _OTHERS for gpu in gpus], f"find up to {most} of their GPU in use by others",
        "end them (nvidia-smi)")  # fmt: skip
    add(FAULT, [gpu.get("gpu_ecc_errors", 0) > 0 for gpu in gpus], "have a GPU with uncorrectable memory errors",
        "reset or leave it")  # fmt: skip
    add(WARNING, [gpu.get("gpu_temperature_c", 0) >= _HOT_C for gpu in gpus], f"have a GPU of {_HOT_C} C or more",
        "look at its cooling")  # fmt: skip
    names = [gpu["name"] for gpu in gpus]
    if len(set(names)) > 1:
        found.append(Finding(WARNING, "devices", f"{by_value(names, places)}; the slowest sets the pace"))
    return found or [Finding(OK, "devices", f"{len(gpus)} x {names[0]}, {size(gpus[0]['total'])} each")]


def judge_cores(cores: Sequence[int], hosts: Sequence[str]) -> list[Finding]:
    """Judge hosts without GPUs: `cores` [rank] are those that a rank may use."""
    ranks, have = Counter(hosts), dict(zip(hosts, cores, strict=True))
    crowded = [host for host in ranks if ranks[host] > have[host]]
    if crowded:
        told = shorten(f"{ranks[host]} ranks for {have[host]} core(s) on {host}" for host in crowded)
        return [Finding(WARNING, "devices", f"CPU, {told}; start fewer ranks there, they take turns")]
    each = shorten(f"{ranks[host]} rank(s), {have[host]} core(s) on {host}" for host in ranks)
    return [Finding(OK, "devices", f"CPU, {each}")]
