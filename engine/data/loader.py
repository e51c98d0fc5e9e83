"""Global batches for one replica, prepared ahead by a background thread.

Which samples form a global batch depends on how many were consumed before it, never on dp or on the micro-batch
size: sample i of micro-batch m of replica r is trained sample consumed + (m * dp + r) * micro_batch + i.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable

import numpy as np
import torch

from engine.data.batch import MicroBatch
from engine.data.samples import Sample, Samples
from engine.objectives.example import Objective


class Collator:
    """Turns samples into micro-batches by an objective."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __call__(self, samples: list[Sample], slots: list[int], counted: int | None = None) -> MicroBatch:
        """Stack samples; only the first `counted` of them enter the loss (all when None)."""
        parts = [self.objective(sample.window, sample.document_starts, sample.index) for sample in samples]
        masks: list[np.ndarray | None] = [part.loss_mask for part in parts]
        if counted is not None:
            whole = [
                np.ones(len(part.tokens), np.float32) if part.loss_mask is None else part.loss_mask for part in parts
            ]
            masks = [*whole[:counted], *(np.zeros_like(mask) for mask in whole[counted:])]
        return MicroBatch(
            tokens_bs=torch.from_numpy(np.stack([part.tokens for part in parts])),
            labels_bs=torch.from_numpy(np.stack([part.labels for part in parts])),
            loss_mask_bs=_stacked(masks),
            positions_bs=_stacked([part.positions for part in parts]),
            documents_bs=_stacked([part.documents for part in parts]),
            slots_b=torch.tensor(slots),
            prefix_bs=_stacked([part.prefix for part in parts]),
            blocks_bs=_stacked([part.blocks for part in parts]),
        )


def _stacked(rows: list[np.ndarray | None]) -> torch.Tensor | None:
    """Stack rows, which an objective gives for all samples or for none."""
    given = [row for row in rows if row is not None]
    return torch.from_numpy(np.stack(given)) if given else None


def in_order(number: int) -> int:
    """The place in the sample order of the n-th trained sample when nothing is passed over."""
    return number


def replica_batch(
    samples: Samples,
    collate: Collator,
    consumed: int,
    batch: int,
    *,
    micro_batch: int,
    dp_rank: int,
    dp: int,
    position: Callable[[int], int] = in_order,
) -> list[MicroBatch]:
    """Return this replica's micro-batches of the global batch that starts at trained sample `consumed`.

    `position(n)` is the place in the sample order of trained sample n (`engine.stability.skips`).
    """
    micros = []
    for first in range(dp_rank * micro_batch, batch, dp * micro_batch):
        slots = list(range(first, first + micro_batch))
        micros.append(collate([samples[position(consumed + slot)] for slot in slots], slots))
    return micros


def validation_batches(
    samples: Samples, collate: Collator, count: int, *, micro_batch: int, dp_rank: int, dp: int
) -> list[MicroBatch]:
    """Return this replica's part of the first `count` samples; fill-ups of the last round do not count in the loss."""
    count = min(count, samples.per_epoch)
    round_size = dp * micro_batch
    micros = []
    for first in range(dp_rank * micro_batch, -(-count // round_size) * round_size, round_size):
        slots = list(range(first, first + micro_batch))
        counted = max(0, min(micro_batch, count - first))
        micros.append(collate([samples[slot % samples.per_epoch] for slot in slots], slots, counted))
    return micros


class Loader:
    """Iterates over the global batches of `plans`, (consumed, batch) pairs, `prefetch` of them ahead."""

    def __init__(
        self,
        samples: Samples,
        collate: Collator,
        plans: Iterable[tuple[int, int]],
        *,
        micro_batch: int,
        dp_rank: int,
        dp: int,
        prefetch: int,
        position: Callable[[int], int] = in_order,
    ) -> None:
        self._prepare = lambda plan: replica_batch(
            samples, collate, *plan, micro_batch=micro_batch, dp_rank=dp_rank, dp=dp, position=position
        )
        self._plans = iter(plans)
        self._stop = threading.Event()
        self._ready: queue.Queue[list[MicroBatch] | BaseException] = queue.Queue(max(1, prefetch))
        self._thread: threading.Thread | None = None
        if prefetch > 0:
            self._thread = threading.Thread(target=self._work, name="loader", daemon=True)
            self._thread.start()

    def next(self) -> list[MicroBatch]:
        """Return the next global batch's micro-batches; an error of the worker is raised here."""
        if self._thread is None:
            return self._prepare(next(self._plans))
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def _work(self) -> None:
        try:
            for plan in self._plans:
                if not self._put(self._prepare(plan)):
                    return
        except BaseException as error:  # handed to the training thread, which raises it
            self._put(error)

    def _put(self, item: list[MicroBatch] | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def close(self) -> None:
        """Stop the worker and wait for it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
