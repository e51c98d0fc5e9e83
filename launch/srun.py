"""Ranks that srun starts, without a launcher of ours or torchrun: who they are is in SLURM's variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_FIRST_PORT, _PORTS = 20000, 12000  # below those that systems hand out by themselves


def is_task() -> bool:
    """Return whether this process is one of several tasks of a step of SLURM's."""
    return "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def become_rank() -> None:
    """Set what torch.distributed reads, where it is not set already."""
    os.environ.update({key: value for key, value in rank_of(os.environ).items() if key not in os.environ})


def rank_of(task: Mapping[str, str]) -> dict[str, str]:
    """Return the rank's environment by that of its `task`; the ranks meet on the node of rank 0."""
    on_one_node = task.get("SLURM_STEP_NUM_NODES") == "1"
    starts = (int(task[name]) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = _FIRST_PORT + (sum(starts) * 31 + int(task.get("SLURM_RESTART_COUNT", "0"))) % _PORTS
    return {
        "RANK": task["SLURM_PROCID"],
        "WORLD_SIZE": task["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": task["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks_on_node(task["SLURM_STEP_TASKS_PER_NODE"], int(task["SLURM_NODEID"]))),
        "MASTER_ADDR": "localhost" if on_one_node else first_host(task["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(port),
    }


def tasks_on_node(counts: str, node: int) -> int:
    """Return the tasks of a node, the first is 0, from SLURM's short form: "4(x2),1" are 4, 4 and 1."""
    for count, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", counts):
        node -= int(times or 1)
        if node < 0:
            return int(count)
    raise ValueError(f"{counts} has no node {node}")


def first_host(nodes: str) -> str:
    """Return the first host of SLURM's short form: "n[01-03,7]-ib,m1" begins with n01-ib."""
    host = ""
    for text, choices in re.findall(r"([^\[\],]+)|\[([^\]]*)\]|,", nodes):
        if not text and not choices:  # the comma after the first host
            break
        host += text or re.split("[-,]", choices)[0]
    return host
