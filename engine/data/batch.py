"""What a forward pass receives."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """Some samples of one global batch.

    `tokens_bs` and `labels_bs` int64; `loss_mask_bs` float32, None when every label counts; `positions_bs` int64,
    None for 0..s-1; `documents_bs` int64 number of each token's document, None when attention ignores documents;
    `slots_b` int64 place of each sample inside the global batch (a token's global position, slot * s + position,
    addresses its dropout).
    """

    tokens_bs: Tensor
    labels_bs: Tensor
    loss_mask_bs: Tensor | None
    positions_bs: Tensor | None
    documents_bs: Tensor | None
    slots_b: Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """Return the same micro-batch on `device`."""

        def move(x: Tensor | None) -> Any:
            return None if x is None else x.to(device, non_blocking=True)

        return MicroBatch(*(move(getattr(self, field.name)) for field in fields(self)))
