"""AlexaTM's mixture (arXiv 2208.01448): restore a text from which spans are missing, or write on a text.

Nothing marks where spans were dropped, and the whole text is to be written. A text to be continued begins with [CLM],
and 20% to 80% of it is given. In one sequence for a decoder: what is given is seen whole, `eod` starts the writing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.objectives.draws import Draws
from engine.objectives.example import Ints
from engine.objectives.noise import blanks, noise_count
from engine.objectives.packed import Piece, shifted

_SHORTEST, _LONGEST = 0.2, 0.8  # of a text that is given, to be continued


@dataclass(frozen=True)
class DenoiseOrContinue:
    """`endings` is the share of texts that are continued; of the others the share `noise` is dropped."""

    noise: float
    span: float
    endings: float
    clm: int
    eod: int

    positioned = blocked = False

    def places(self, length: int) -> int:
        return max(2 * length - noise_count(length, self.noise) + 1, length + 2)

    def __call__(self, text: Ints, draws: Draws) -> Piece:
        if draws.chance(self.endings):
            share = _SHORTEST + (_LONGEST - _SHORTEST) * draws.uniform(1)[0]
            given = noise_count(len(text), share)
            return self._piece([self.clm, *text[:given]], text[given:])
        keep = np.ones(len(text), dtype=bool)
        for start, stop in blanks(len(text), self.noise, self.span, draws):
            keep[start:stop] = False
        return self._piece(text[keep].tolist(), text)

    def _piece(self, given: list[int], written: Ints) -> Piece:
        sequence = np.concatenate([given, [self.eod], written, [self.eod]]).astype(np.int64)
        return shifted(sequence, len(given) + 1)
