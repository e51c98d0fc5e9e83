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
    addresses its dropout); `prefix_bs` bool, True for tokens that their whole document sees, not only what follows
    them, None for none; `blocks_bs` int64 places inside a blank to be filled in, 0 outside, None without such.
    """

    tokens_bs: Tensor
    labels_bs: Tensor
    loss_mask_bs: Tensor | None
    positions_bs: Tensor | None
    documents_bs: Tensor | None
    slots_b: Tensor
    prefix_bs: Tensor | None = None
    blocks_bs: Tensor | None = None

    def to(self, device: torch.device) -> MicroBatch:
        """Return the same micro-batch on `device`."""

        def move(x: Tensor | None) -> Any:
            return None if x is None else x.to(device, non_blocking=True)

        return MicroBatch(*(move(getattr(self, field.name)) for field in fields(self)))
