"""A vocabulary for tests, and the way back from what an objective made to the text it was made of."""

from __future__ import annotations

import numpy as np

from engine.errors import DataError
from engine.objectives.example import Ints
from engine.objectives.packed import Piece

EOD, FIRST = 0, 100  # text tokens are FIRST and up


class Words:
    """Special tokens get ids from 1 on as they are looked for; token FIRST + n is the character chr(n)."""

    def __init__(self, lacking: tuple[str, ...] = ()) -> None:
        self.eod, self.vocab_size = EOD, 1000
        self.ids: dict[str, int] = {}
        self.lacking = lacking

    def find(self, *names: str) -> int:
        if names[0] in self.lacking:
            raise DataError(f"no {names[0]}")
        return self.ids.setdefault(names[0], len(self.ids) + 1)

    def encode(self, text: str) -> list[int]:
        return [FIRST + ord(character) for character in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(token - FIRST) for token in tokens)


def text_of(length: int, seed: int = 0) -> Ints:
    return np.random.default_rng([length, seed]).integers(FIRST, 900, length)


def halves(piece: Piece) -> tuple[list[int], list[int]]:
    """Return what a shifted piece shows whole and what it predicts."""
    assert piece.scored.sum() == len(piece) - max(0, piece.prefix - 1)
    assert not piece.scored[: max(0, piece.prefix - 1)].any()
    assert (piece.labels[:-1] == piece.tokens[1:]).all()
    return piece.tokens[: piece.prefix].tolist(), piece.labels[piece.scored].tolist()


def fill(inputs: list[int], targets: list[int], sentinels: list[int]) -> list[int]:
    """Put the spans of `targets`, each behind its sentinel, where that sentinel stands in `inputs`."""
    spans: dict[int, list[int]] = {}
    for token in targets:
        if token in sentinels:
            spans[token] = []
            current = spans[token]
        else:
            current.append(token)
    marks = [token for token in inputs if token in sentinels]
    assert marks == list(spans) == sentinels[: len(marks)], "the same sentinels, in order, none left out"
    return [word for token in inputs for word in spans.get(token, [token])]
