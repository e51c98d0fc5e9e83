"""Where a rank computes: the one place that knows CPU from CUDA.

Everything else asks a `Device` for its backend, its synchronisation and its memory figures, so that the same
lines run on CPU + gloo and on CUDA + NCCL, and on fake CUDA tensors in tests.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from typing import Any

import torch

from engine.errors import ConfigError, did_you_mean

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Device:
    """One rank's device. `torch_device` is what tensors are made on; `backend` is torch.distributed's name."""

    torch_device: torch.device
    backend: str

    @classmethod
    def pick(cls, name: str, local_rank: int = 0) -> Device:
        """Return the device called `name` (auto | cpu | cuda); raise ConfigError when there is none."""
        if name not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"run.device={name} is unknown.{did_you_mean(name, ('auto', 'cpu', 'cuda'))}")
        available = torch.cuda.is_available()
        if name == "cuda" and not available:
            raise ConfigError("run.device=cuda, but torch sees no CUDA device; write run.device=cpu or auto.")
        if name == "cpu" or not available:
            return cls(torch.device("cpu"), "gloo")
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"this node has {torch.cuda.device_count()} GPUs, but local rank {local_rank} was started on it; "
                "start one rank per GPU, or write run.device=cpu."
            )
        torch.cuda.set_device(local_rank)
        return cls(torch.device("cuda", local_rank), "nccl")

    @property
    def is_cuda(self) -> bool:
        return self.torch_device.type == "cuda"

    def synchronize(self) -> None:
        """Wait until everything queued on the device is done; nothing to do on a CPU."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch_device)

    def mark(self) -> float | torch.cuda.Event:
        """Return this moment in the order of the device's work, for `seconds_between`."""
        if self.is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        return time.perf_counter()

    def wait_for(self, moment: Any) -> None:
        """Wait until the device has come to a `mark`."""
        if self.is_cuda:
            moment.synchronize()

    def seconds_between(self, first: Any, last: Any) -> float:
        """Return the seconds from one `mark` to another; on CUDA all queued work must be done (`synchronize`)."""
        return first.elapsed_time(last) / 1000 if self.is_cuda else last - first

    def peak_memory(self) -> int:
        """Return the most memory this rank has held, in bytes (allocator on CUDA, resident set on a CPU)."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated(self.torch_device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def describe(self) -> str:
        """Return a short name for start-up messages and metrics."""
        if self.is_cuda:
            return torch.cuda.get_device_name(self.torch_device)
        return f"CPU, {torch.get_num_threads()} thread(s)"


def local_rank() -> int:
    """Return this process's rank on its node (torchrun's LOCAL_RANK; 0 when started alone)."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def set_threads(threads: int, ranks_on_node: int) -> None:
    """Give torch `threads` CPU threads, or an equal share of the node's cores when 0.

    More threads than cores make OpenMP spin against itself, which costs a factor of 3 to 20. A rank that the launcher
    has bound to cores sees no others: they are all its own.
    """
    if os.environ.get("TRIMARAN_BINDING") == "cores":
        ranks_on_node = 1
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads or max(1, cores // max(1, ranks_on_node)))
