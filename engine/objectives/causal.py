"""Causal language modelling: predict each next token of a packed window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.objectives.example import Example, Ints, document_numbers, document_positions


@dataclass(frozen=True)
class Causal:
    """`eod_loss=False` leaves out the loss of guessing how a document starts (the label after an `eod` token).

    With `document_mask` attention stays inside documents, with `position_reset` positions begin anew in each.
    """

    seq_len: int
    eod: int | None = None
    eod_loss: bool = True
    document_mask: bool = False
    position_reset: bool = False

    @property
    def stride(self) -> int:
        return self.seq_len

    def __call__(self, window: Ints, starts: Ints, index: int = 0) -> Example:
        tokens, labels = window[:-1], window[1:]
        scored = None if self.eod_loss or self.eod is None else (tokens != self.eod).astype(np.float32)
        return Example(
            tokens, labels, scored,
            positions=document_positions(starts, len(tokens)) if self.position_reset else None,
            documents=document_numbers(starts, len(tokens)) if self.document_mask else None,
        )  # fmt: skip
