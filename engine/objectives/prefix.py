"""Prefix language modelling (arXiv 1910.10683): a text is cut at random; the first part is seen whole."""

from __future__ import annotations

from engine.objectives.draws import Draws
from engine.objectives.example import Ints
from engine.objectives.packed import Piece, shifted


class PrefixLM:
    """Any cut is as likely as any other; only tokens behind it are predicted."""

    positioned = blocked = False

    def places(self, length: int) -> int:
        return length - 1

    def __call__(self, text: Ints, draws: Draws) -> Piece:
        return shifted(text, 1 + draws.below(len(text) - 1))
