"""Masked language modelling (BERT, arXiv 1810.04805): tell tokens that were hidden, seeing both sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.objectives.draws import Draws
from engine.objectives.example import Ints
from engine.objectives.noise import noise_count
from engine.objectives.packed import Piece


@dataclass(frozen=True)
class Hiding:
    """How chosen tokens are hidden: 80% become `mask`, 10% any token of `vocab`, 10% stay as they are."""

    mask: int
    vocab: int

    def __call__(self, text: Ints, chosen: Ints, draws: Draws) -> Ints:
        """Return a copy of `text` in which the tokens at places `chosen` are hidden."""
        how, other = draws.uniform(2 * len(chosen)).reshape(2, -1)
        any_token = np.minimum((other * self.vocab).astype(np.int64), self.vocab - 1)
        hidden = text.copy()
        hidden[chosen] = np.where(how < 0.8, self.mask, np.where(how < 0.9, any_token, text[chosen]))
        return hidden


@dataclass(frozen=True)
class MaskedLM:
    """Hide the share `noise` of the tokens, never an `eod`."""

    noise: float
    hiding: Hiding
    eod: int

    positioned = blocked = False

    def places(self, length: int) -> int:
        return length

    def __call__(self, text: Ints, draws: Draws) -> Piece:
        candidates = np.flatnonzero(text != self.eod)
        count = min(noise_count(len(text), self.noise), len(candidates))
        chosen = candidates[draws.choose(len(candidates), count)]
        scored = np.zeros(len(text), dtype=bool)
        scored[chosen] = True
        return Piece(self.hiding(text, chosen, draws), text, scored, prefix=len(text))
