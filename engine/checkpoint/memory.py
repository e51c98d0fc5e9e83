"""Recent states in host memory: each rank keeps copies of what it owns, as many as its budget holds.

Going back to one costs a copy, where a checkpoint costs reading and verifying files. On CUDA the copies go to pinned
memory in stream order, so that training is not waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class HostState:
    """One state: `meta` as it was handed over, `values` in the order of the tensors it was copied from."""

    step: int
    meta: dict[str, Any]
    values: list[Tensor]


class HostStates:
    """Copies of `tensors` (a rank's masters, moments, counters), newest last; the oldest makes room for the next."""

    def __init__(self, tensors: Sequence[Tensor], budget_bytes: float, most: int) -> None:
        self._tensors = list(tensors)
        self.bytes_each = sum(tensor.nbytes for tensor in tensors)
        self.room = min(most, int(budget_bytes // max(1, self.bytes_each)))
        self.kept: list[HostState] = []  # oldest first
        self._spare: list[list[Tensor]] = []

    def find(self, step: int) -> HostState | None:
        """Return the state of `step`, if it is kept."""
        return next((state for state in self.kept if state.step == step), None)

    def keep(self, step: int, meta: dict[str, Any]) -> None:
        """Copy the tensors as they are now; nothing when the budget holds no state at all."""
        if self.room == 0:
            return
        self.forget(after=step - 1)
        if len(self.kept) >= self.room:
            self._spare.append(self.kept.pop(0).values)
        values = self._spare.pop() if self._spare else [_host_like(tensor) for tensor in self._tensors]
        for copy, tensor in zip(values, self._tensors, strict=True):
            copy.copy_(tensor.detach(), non_blocking=True)
        self.kept.append(HostState(step, meta, values))

    def restore(self, state: HostState) -> None:
        """Write a state back into the tensors."""
        with torch.no_grad():
            for copy, tensor in zip(state.values, self._tensors, strict=True):
                tensor.copy_(copy, non_blocking=True)

    def forget(self, after: int) -> None:
        """Drop the states of steps later than `after`; their memory is used again."""
        self._spare += [state.values for state in self.kept if state.step > after]
        self.kept = [state for state in self.kept if state.step <= after]


def _host_like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
