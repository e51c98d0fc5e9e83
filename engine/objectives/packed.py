"""Pieces of text, each corrupted by itself, laid end to end in one sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigError
from engine.objectives.draws import Draws
from engine.objectives.example import Example, Ints


@dataclass(frozen=True)
class Piece:
    """What becomes of one text: `tokens` and `labels` int64 [n], `scored` bool [n]: whose labels count in the loss.

    All places see the first `prefix` ones, and each sees those before it. `positions` (None: 0..n-1) and `blocks`
    (None: zeros) int64 [n].
    """

    tokens: Ints
    labels: Ints
    scored: NDArray[np.bool_]
    prefix: int
    positions: Ints | None = None
    blocks: Ints | None = None

    def __len__(self) -> int:
        return len(self.tokens)


def shifted(sequence: Ints, prefix: int) -> Piece:
    """Predict each next token of `sequence` from the end of its first `prefix` tokens on, which see each other."""
    scored = np.ones(len(sequence) - 1, dtype=bool)
    scored[: max(0, prefix - 1)] = False
    return Piece(sequence[:-1], sequence[1:], scored, prefix)


class Noise(Protocol):
    """How one text of two tokens or more becomes a piece.

    `positioned`: its pieces have positions of their own; `blocked`: and places inside blanks.
    """

    @property
    def positioned(self) -> bool: ...

    @property
    def blocked(self) -> bool: ...

    def places(self, length: int) -> int:
        """Return the most places that a text of `length` tokens takes."""

    def __call__(self, text: Ints, draws: Draws) -> Piece: ...


class Packed:
    """An objective: `noise` on the text of a sample, or with `by_document` on each document in it.

    The text of a sample is the longest of which every draw fits `seq_len` places; what is left over is filled up
    with `filler`, which nobody sees and no loss counts. A document whose piece no longer fits beside those to come is
    learned left to right as it is, so that no text is lost.
    """

    def __init__(
        self, noise: Noise, seq_len: int, *, filler: int, seed: int, by_document: bool, position_reset: bool
    ) -> None:
        self.noise, self.seq_len, self.filler, self.seed = noise, seq_len, filler, seed
        self.by_document, self.position_reset = by_document, position_reset
        self.stride = text_length(noise, seq_len)

    def __call__(self, window: Ints, starts: Ints, index: int) -> Example:
        return self._lay_out(self.pieces(window[: self.stride], starts, index))

    def pieces(self, text: Ints, starts: Ints, index: int) -> list[Piece]:
        """Return the pieces of one sample, of `seq_len` places at most."""
        draws, pieces = Draws(self.seed, index), []
        cuts = starts[starts < len(text)] if self.by_document else starts[:0]
        left, room = len(text), self.seq_len
        for part in np.split(text, cuts):
            left -= len(part)
            if len(part) < 2:  # nothing to predict from
                continue
            piece = self.noise(part, draws)
            if len(piece) > room - left:
                piece = shifted(part, 0)
            room -= len(piece)
            pieces.append(piece)
        return pieces

    def _lay_out(self, pieces: list[Piece]) -> Example:
        s = self.seq_len
        tokens, labels = (np.full(s, self.filler, dtype=np.int64) for _ in range(2))
        loss_mask, prefix = np.zeros(s, dtype=np.float32), np.zeros(s, dtype=bool)
        documents = np.full(s, len(pieces), dtype=np.int64)
        positions, blocks = (np.zeros(s, dtype=np.int64) for _ in range(2))
        begin = 0
        for number, piece in enumerate(pieces):
            here = slice(begin, begin + len(piece))
            tokens[here], labels[here], loss_mask[here] = piece.tokens, piece.labels, piece.scored
            documents[here] = number
            prefix[begin : begin + piece.prefix] = True
            positions[here] = np.arange(len(piece)) if piece.positions is None else piece.positions
            positions[here] += 0 if self.position_reset else begin
            blocks[here] = 0 if piece.blocks is None else piece.blocks
            begin = here.stop
        placed = self.noise.positioned or self.position_reset
        return Example(
            tokens, labels, loss_mask, positions if placed else None, documents, prefix,
            blocks if self.noise.blocked else None,
        )  # fmt: skip


def text_length(noise: Noise, seq_len: int) -> int:
    """Return the most tokens of text of which every draw fits `seq_len` places; ConfigError when none does."""
    for length in range(seq_len + 1, 1, -1):
        if noise.places(length) <= seq_len:
            return length
    raise ConfigError(f"data.seq_len={seq_len} has no room for the objective's special tokens; write data.seq_len=64.")
