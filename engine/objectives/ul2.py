"""UL2's mixture of denoisers (arXiv 2205.05131), each announced by its mode token, in one sequence for a decoder.

R cuts out few short spans, X many or long ones, S the end of the text. U-PaLM (arXiv 2210.11399) mixes others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.objectives.draws import Draws
from engine.objectives.example import Ints
from engine.objectives.packed import Piece, shifted
from engine.objectives.span_corruption import SpanCorruption


@dataclass(frozen=True)
class Sequential:
    """The S denoiser: cut off the end, uniformly 1 to 2 * `noise` of the text, so the share `noise` in the mean."""

    noise: float
    sentinel: int
    eod: int
    mode: int

    positioned = blocked = False

    def places(self, length: int) -> int:
        return length + 3

    def __call__(self, text: Ints, draws: Draws) -> Piece:
        most = min(max(round(2.0 * self.noise * len(text)) - 1, 1), len(text) - 1)
        keep = len(text) - 1 - draws.below(most)
        inputs, targets = [self.mode, *text[:keep], self.sentinel], [self.sentinel, *text[keep:], self.eod]
        return shifted(np.asarray(inputs + targets), len(inputs))


@dataclass(frozen=True)
class MixtureOfDenoisers:
    """Each text gets one of `denoisers`, as often as its weight says."""

    denoisers: Sequence[SpanCorruption | Sequential]
    weights: Sequence[float]

    positioned = blocked = False

    def places(self, length: int) -> int:
        return max(denoiser.places(length) for denoiser in self.denoisers)

    def __call__(self, text: Ints, draws: Draws) -> Piece:
        return self.denoisers[draws.pick(np.asarray(self.weights))](text, draws)
