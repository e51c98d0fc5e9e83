"""GLM's autoregressive blank infilling (arXiv 2103.10360, GLM-130B: arXiv 2210.02414).

Part A is the text with each span replaced by one mask token, and is seen whole; part B holds the spans in random
order, each as `sop` and its tokens, predicted left to right up to `eop`. For [MASK] the spans are short; for [gMASK]
there is one, the end of the text. The position of a token of part B is that of its mask token, and its place inside
the blank, from 1 on, is a second one; with 1-D positions, as GLM-130B has them, places simply count on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.objectives.draws import Draws
from engine.objectives.example import Ints
from engine.objectives.noise import blanks, most_blanks
from engine.objectives.packed import Piece


@dataclass(frozen=True)
class BlankInfilling:
    """`endings` is the share of texts that get [gMASK], whose end is at least the share `shortest_end` of the text."""

    noise: float
    span: float
    endings: float
    shortest_end: float
    mask: int
    gmask: int
    sop: int
    eop: int
    two_positions: bool

    @property
    def positioned(self) -> bool:
        return self.two_positions

    @property
    def blocked(self) -> bool:
        return self.two_positions

    def places(self, length: int) -> int:
        return length + 2 * most_blanks(length, self.noise)

    def __call__(self, text: Ints, draws: Draws) -> Piece:
        if draws.chance(self.endings):
            least = min(max(round(self.shortest_end * len(text)), 1), len(text) - 1)
            start = len(text) - least - draws.below(len(text) - least)
            return self.piece(text, [(start, len(text))], [0], self.gmask)
        spans = blanks(len(text), self.noise, self.span, draws)
        return self.piece(text, spans, draws.order(len(spans)).tolist(), self.mask)

    def piece(self, text: Ints, spans: list[tuple[int, int]], order: list[int], mask: int) -> Piece:
        """Return the piece of `text` with `spans` [start, stop) as blanks, told in `order`."""
        part_a: list[int] = []
        marks, begin = [], 0
        for start, stop in spans:
            part_a += text[begin:start].tolist()
            marks.append(len(part_a))
            part_a.append(mask)
            begin = stop
        part_a += text[begin:].tolist()
        tokens, labels = list(part_a), list(part_a)
        positions, blocks = list(range(len(part_a))), [0] * len(part_a)
        for number in order:
            blank = text[slice(*spans[number])].tolist()
            tokens += [self.sop, *blank]
            labels += [*blank, self.eop]
            positions += [marks[number]] * (len(blank) + 1)
            blocks += range(1, len(blank) + 2)
        made = [np.asarray(values, dtype=np.int64) for values in (tokens, labels, positions, blocks)]
        scored = np.arange(len(tokens)) >= len(part_a)
        two = self.two_positions
        return Piece(made[0], made[1], scored, len(part_a), made[2] if two else None, made[3] if two else None)
