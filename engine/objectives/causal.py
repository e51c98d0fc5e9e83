"""Causal language modelling: predict each next token of a packed window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Causal:
    """`eod_loss=False` leaves out the loss of guessing how a document starts (the label after an `eod` token)."""

    eod: int | None
    eod_loss: bool = True

    def __call__(
        self, window: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32] | None]:
        """Map a window [s + 1] to inputs [s], labels [s] and loss mask [s] (None when every label counts)."""
        tokens, labels = window[:-1], window[1:]
        if self.eod_loss or self.eod is None:
            return tokens, labels, None
        return tokens, labels, (tokens != self.eod).astype(np.float32)
