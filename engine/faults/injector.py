"""Does the harm that a plan asks for, at the moment the flight record enters the phase it names."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.checkpoint.folder import shard_name, step_path
from engine.faults.plan import Fault

if TYPE_CHECKING:
    from engine.step import Stepper

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_EXIT = 7


class Injector:
    """The faults of one rank. Give `on_phase` to the flight recorder as its listener."""

    def __init__(self, faults: list[Fault], rank: int, attempt: int, checkpoints: Path, stepper: Stepper) -> None:
        self._rank, self._checkpoints, self._stepper = rank, checkpoints, stepper
        self._mine = [
            fault
            for fault in faults
            if fault.what != "poison" and fault.rank in (None, rank) and fault.attempt in (None, attempt)
        ]
        self._done: set[tuple[int, int]] = set()  # (place in the plan, step): a step repeated later goes well

    def on_phase(self, phase: str, step: int) -> None:
        """Do what is due when `phase` of `step` begins."""
        for place, fault in enumerate(self._mine):
            due = fault.where == phase and fault.step <= step < fault.step + fault.steps
            if due and (fault.again or (place, step) not in self._done):
                self._done.add((place, step))
                self._strike(fault, step)

    def _strike(self, fault: Fault, step: int) -> None:
        strike: dict[str, Callable[[], object]] = {
            "kill": lambda: self._later(fault, signal.SIGKILL),
            "stop": lambda: self._later(fault, signal.SIGSTOP),
            "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
            "signal": lambda: os.kill(os.getpid(), signal.Signals[f"SIG{fault.signal}"]),
            "exit": lambda: os._exit(_EXIT),
            "raise": lambda: _raise(RuntimeError(f"injected: {fault.describe()}")),
            "memory": lambda: torch.empty(1 << 60, dtype=torch.uint8, device=self._stepper.device.torch_device),
            "hang": lambda: threading.Event().wait(),
            "hold_gil": lambda: ctypes.PyDLL(None).usleep(int(fault.seconds * 1e6)),
            "sleep": lambda: time.sleep(fault.seconds),
            "collective": lambda: dist.all_reduce(torch.ones(7, device=self._stepper.device.torch_device)),
            "nan_grad": lambda: self._stepper.buckets.flat_grads[fault.element].fill_(torch.nan),
            "inf_loss": self._spoil_loss,
            "flip_grad": lambda: _flip(self._stepper.buckets.buckets[0].grad_shard(), fault),
            "flip_weight": lambda: _flip(self._stepper.buckets.flat_params, fault),
            "flip_master": lambda: _flip(self._stepper.optimizer.shards[0].master, fault),
            "rate": lambda: self._raise_rate(fault.factor),
            "no_space": lambda: _raise(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
            "truncate": lambda: self._truncate(step),
            "flip_file": lambda: self._flip_file(step, fault.bit),
        }  # fmt: skip
        strike[fault.what]()

    def _later(self, fault: Fault, number: signal.Signals) -> None:
        if fault.seconds == 0:
            os.kill(os.getpid(), number)
            return
        timer = threading.Timer(fault.seconds, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    def _spoil_loss(self) -> None:
        """Have the next micro-batch's loss come out infinite, where this rank computes losses."""
        chunk = self._stepper.chunks[-1]
        if not chunk.is_last:
            return
        healthy = chunk.loss

        def spoilt(*arguments: object) -> Tensor:
            del chunk.loss  # the method of the class again
            return healthy(*arguments) * torch.inf  # type: ignore[arg-type]

        chunk.loss = spoilt  # type: ignore[method-assign, assignment]

    def _raise_rate(self, factor: float) -> None:
        """Have the next update made at a multiple of its learning rate."""
        optimizer = self._stepper.optimizer
        healthy = optimizer.step

        def spoilt(lr: float, *arguments: Any, **named: Any) -> Tensor:
            del optimizer.step  # the method of the class again
            return healthy(lr * factor, *arguments, **named)

        optimizer.step = spoilt  # type: ignore[method-assign]

    def _truncate(self, step: int) -> None:
        path = self._shard(step)
        if path.exists():
            os.truncate(path, path.stat().st_size // 2)

    def _flip_file(self, step: int, bit: int) -> None:
        path = self._shard(step)
        if path.exists():
            with open(path, "r+b") as file:
                file.seek(path.stat().st_size // 2)
                byte = file.read(1)[0] ^ (1 << bit % 8)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte]))

    def _shard(self, step: int) -> Path:
        return step_path(self._checkpoints, step) / shard_name(self._rank)


def _raise(error: Exception) -> None:
    raise error


def _flip(flat: Tensor, fault: Fault) -> None:
    """Flip one bit of one element in place, whatever the dtype."""
    words = flat.detach().view(_INTEGERS[flat.dtype.itemsize])
    bit = fault.bit % (8 * flat.dtype.itemsize)
    sign = bit == 8 * flat.dtype.itemsize - 1
    words[fault.element] ^= -(1 << bit) if sign else 1 << bit
