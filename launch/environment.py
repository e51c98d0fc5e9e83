"""What ranks find in their environment, and why: set by our launcher, and written out in a job's script."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from engine.config import Config

# glibc maps every tensor above 32 MiB afresh and returns it to the system when freed, so each step pays for zeroing all
# its pages again; raised thresholds keep them in the heap (SwiGLU of 45 M elements: 194 -> 51 ms).
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}
_HEARTBEAT_GRACE_S = 60


@dataclass(frozen=True)
class Setting:
    """A variable of the environment, with the reason for its value."""

    name: str
    value: str
    why: str


def network(config: Config) -> list[Setting]:
    """Return what NCCL and gloo are told of the network, and of how to end."""
    cluster = config.cluster
    settings = []
    if cluster.interface is not None:
        why = "ranks of different nodes talk over this interface"
        settings += [Setting(name, cluster.interface, why) for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")]
    if cluster.ib_hca is not None:
        settings.append(Setting("NCCL_IB_HCA", cluster.ib_hca, "the InfiniBand adapters of the training"))
    heartbeat = int(config.parallel.timeout_s) + _HEARTBEAT_GRACE_S
    return [
        *settings,
        Setting("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1", "a failed collective ends its rank instead of blocking it"),
        Setting(
            "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(heartbeat),
            "a blocked NCCL ends its rank too, after parallel.timeout_s: our own word on the hang comes first",
        ),
    ]  # fmt: skip


@contextlib.contextmanager
def defaults(wanted: dict[str, str], forced: dict[str, str]) -> Iterator[None]:
    """Set `forced`, and what a user has not chosen of `wanted`, in this process's environment inside the block."""
    fresh = {key: value for key, value in wanted.items() if key not in os.environ} | forced
    os.environ.update(fresh)
    try:
        yield
    finally:
        for key in fresh:
            os.environ.pop(key, None)
