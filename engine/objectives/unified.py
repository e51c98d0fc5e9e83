"""UniLM's mixture (arXiv 1905.03197): tokens are hidden as in BERT, and told under different attention.

A third of the texts is seen from both sides, a third has a first part seen whole and a second one seen left to right,
and of the rest one half is seen left to right, the other right to left. A text seen right to left is laid out
backwards with its positions, which is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.objectives.draws import Draws
from engine.objectives.example import Ints
from engine.objectives.masked import Hiding
from engine.objectives.noise import noise_count
from engine.objectives.packed import Piece

BOTH, TWO_PARTS, RIGHTWARD, LEFTWARD = range(4)
_WEIGHTS = np.array([1 / 3, 1 / 3, 1 / 6, 1 / 6])
_SINGLE = 0.8  # of what is hidden are single tokens, the rest two or three in a row


@dataclass(frozen=True)
class UnifiedLM:
    """Hide the share `noise` of the tokens, never an `eod`."""

    noise: float
    hiding: Hiding
    eod: int

    positioned, blocked = True, False

    def places(self, length: int) -> int:
        return length

    def __call__(self, text: Ints, draws: Draws) -> Piece:
        kind = draws.pick(_WEIGHTS)
        cut = 1 + draws.below(len(text) - 1)
        positions = np.arange(len(text))
        if kind == LEFTWARD:
            text, positions = text[::-1].copy(), positions[::-1].copy()
        scored = self.choose(text, draws)
        hidden = self.hiding(text, np.flatnonzero(scored), draws)
        prefix = {BOTH: len(text), TWO_PARTS: cut}.get(kind, 0)
        return Piece(hidden, text, scored, prefix, positions)

    def choose(self, text: Ints, draws: Draws) -> np.ndarray:
        """Return a mask of exactly as many tokens as `noise` says, in groups of one to three."""
        wanted = min(noise_count(len(text), self.noise), int((text != self.eod).sum()))
        order, sizes = draws.order(len(text)), draws.uniform(len(text))
        chosen, count = np.zeros(len(text), dtype=bool), 0
        for start, u in zip(order.tolist(), sizes.tolist(), strict=True):
            size = 1 if u < _SINGLE else 2 if u < (1 + _SINGLE) / 2 else 3
            for place in range(start, min(start + size, len(text))):
                if count < wanted and not chosen[place] and text[place] != self.eod:
                    chosen[place] = True
                    count += 1
            if count == wanted:
                break
        return chosen
