"""Pieces end to end: what fits, what is filled up, documents apart, every sample alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import DataConfig, ObjectiveConfig
from engine.errors import ConfigError
from engine.objectives.choose import make_objective
from engine.objectives.packed import Packed, Piece, shifted
from tests.objectives.test_settings import CHOICES, chosen
from tests.objectives.words import EOD, Words

NONE = np.array([], dtype=np.int64)
PACKED = sorted(set(CHOICES) - {"causal", "fim"})


def packed(choice: str, seq_len: int = 96, **changes: bool) -> Packed:
    objective = make_objective(chosen(choice), DataConfig(seq_len=seq_len, **changes), 1, Words())
    assert isinstance(objective, Packed)
    return objective


def test_shifted_by_hand() -> None:
    piece = shifted(np.array([5, 6, 7, 8]), 2)
    assert (piece.tokens.tolist(), piece.labels.tolist()) == ([5, 6, 7], [6, 7, 8])
    assert piece.scored.tolist() == [False, True, True]
    assert shifted(np.array([5, 6]), 0).scored.tolist() == [True]


class Halves:
    """Shows the first half, twice as long as it was, and blocks and positions of its own."""

    positioned = blocked = True

    def places(self, length: int) -> int:
        return length + length // 2

    def __call__(self, text: np.ndarray, draws: object) -> Piece:
        half = text[: len(text) // 2]
        tokens = np.concatenate([half, text])
        scored = np.arange(len(tokens)) >= len(half)
        return Piece(tokens, tokens, scored, len(half), np.arange(len(tokens)) * 2, np.arange(len(tokens)) + 1)


def test_the_layout_by_hand() -> None:
    objective = Packed(Halves(), 10, filler=EOD, seed=0, by_document=True, position_reset=False)
    assert objective.stride == 7
    example = objective(np.arange(1, 9), np.array([4, 6]), 0)
    # [1 2 3 4] in 6 places, [5 6] in 3; [7] has nothing to predict from
    assert example.tokens.tolist() == [1, 2, 1, 2, 3, 4, 5, 5, 6, EOD]
    assert example.documents is not None
    assert example.documents.tolist() == [0] * 6 + [1] * 3 + [2]
    assert example.prefix is not None
    assert example.prefix.tolist() == [True] * 2 + [False] * 4 + [True] + [False] * 3
    assert example.loss_mask is not None
    assert example.loss_mask.tolist() == [0, 0, 1, 1, 1, 1, 0, 1, 1, 0]
    assert example.positions is not None
    assert example.positions.tolist() == [0, 2, 4, 6, 8, 10, 6, 8, 10, 0]
    assert example.blocks is not None
    assert example.blocks.tolist() == [1, 2, 3, 4, 5, 6, 1, 2, 3, 0]


class Marked:
    """Two marks before every text."""

    positioned = blocked = False

    def places(self, length: int) -> int:
        return length + 2

    def __call__(self, text: np.ndarray, draws: object) -> Piece:
        tokens = np.concatenate([[88, 99], text])
        return Piece(tokens, tokens, tokens > 0, 2)


def test_a_document_that_no_longer_fits_is_learned_left_to_right() -> None:
    objective = Packed(Marked(), 10, filler=EOD, seed=0, by_document=True, position_reset=False)
    assert objective.stride == 8
    example = objective(np.arange(1, 10), np.array([2, 4, 6]), 0)
    # marks for [1 2] leave 6 places for the 6 tokens to come; [3 4] and [5 6] as they are, then there is room again
    assert example.tokens.tolist() == [88, 99, 1, 2, 3, 5, 88, 99, 7, 8]
    assert example.labels.tolist() == [88, 99, 1, 2, 4, 6, 88, 99, 7, 8]
    assert example.prefix is not None
    assert example.prefix.tolist() == [True, True, False, False, False, False, True, True, False, False]
    assert example.positions is example.blocks is None


@pytest.mark.parametrize("choice", PACKED)
@given(ends=st.lists(st.integers(1, 50), max_size=40), index=st.integers(0, 10**6), reset=st.booleans())
@settings(max_examples=12, deadline=None)
def test_documents_of_any_length_fit(choice: str, ends: list[int], index: int, reset: bool) -> None:
    objective = packed(choice, document_mask=True, position_reset=reset)
    window, starts = np.arange(200, 201 + objective.stride), np.cumsum(ends, dtype=np.int64)
    starts = starts[starts <= objective.stride]
    pieces = objective.pieces(window[: objective.stride], starts, index)
    example = objective(window, starts, index)
    parts = np.split(window[: objective.stride], starts[starts < objective.stride])
    documents = [part for part in parts if len(part) > 1]
    assert len(pieces) == len(documents)
    for piece, document in zip(pieces, documents, strict=True):
        text = set(document.tolist())
        assert {*piece.tokens.tolist(), *piece.labels.tolist()} & set(window.tolist()) == text or choice in (
            "masked", "unified"  # a token may be replaced by any other
        )  # fmt: skip
        assert text <= {*piece.tokens.tolist(), *piece.labels.tolist()}, "no token of the text is lost"
    assert example.documents is not None
    assert example.prefix is not None
    assert (np.diff(example.documents) >= 0).all()
    if example.positions is not None:
        assert example.positions.max() < objective.seq_len, "a table of positions need not be longer than the sample"


@pytest.mark.parametrize("choice", sorted(set(CHOICES) - {"causal"}))
def test_a_sample_can_be_drawn_alone_and_each_draws_anew(choice: str) -> None:
    def example(index: int, seed: int = 1) -> list[object]:
        made = make_objective(chosen(choice), DataConfig(seq_len=96), seed, Words())
        return [
            None if x is None else x.tolist()
            for x in vars(made(np.arange(100, 101 + made.stride), NONE, index)).values()
        ]

    assert example(7) == example(7)
    assert len({str(example(index)) for index in range(12)}) > 6
    assert [example(index, seed=2) for index in range(12)] != [example(index) for index in range(12)]


def test_no_room_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match=r"data\.seq_len=3 has no room"):
        make_objective(ObjectiveConfig(name="alexatm"), DataConfig(seq_len=3), 1, Words())
