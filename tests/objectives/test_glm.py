"""GLM's blanks: the paper's figure, shares of [MASK] and [gMASK], nothing lost."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.objectives.draws import Draws
from engine.objectives.glm import BlankInfilling
from engine.objectives.packed import Piece
from tests.objectives.words import text_of

MASK, GMASK, SOP, EOP = 1, 2, 3, 4


def objective(two: bool = True, endings: float = 0.7) -> BlankInfilling:
    return BlankInfilling(0.15, 3.0, endings, 0.2, MASK, GMASK, SOP, EOP, two_positions=two)


def test_the_papers_figure() -> None:
    """x1..x6, [x3] and [x5, x6] are blanks, told in the other order (figure 2; positions there count from 1)."""
    piece = objective().piece(np.array([101, 102, 103, 104, 105, 106]), [(2, 3), (4, 6)], [1, 0], MASK)
    assert piece.positions is not None
    assert piece.blocks is not None
    assert piece.tokens.tolist() == [101, 102, MASK, 104, MASK, SOP, 105, 106, SOP, 103]
    assert piece.labels[5:].tolist() == [105, 106, EOP, 103, EOP]
    assert (piece.positions + 1).tolist() == [1, 2, 3, 4, 5, 5, 5, 5, 3, 3]
    assert piece.blocks.tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 1, 2]
    assert piece.scored.tolist() == [False] * 5 + [True] * 5
    assert piece.prefix == 5


def recover(piece: Piece) -> list[int]:
    """Put the blanks back: by position and place inside the blank."""
    assert piece.positions is not None
    assert piece.blocks is not None
    told: dict[int, list[int]] = {}
    for label, position, place in zip(
        piece.labels[piece.scored], piece.positions[piece.scored], piece.blocks[piece.scored], strict=True
    ):
        assert place == len(told.setdefault(int(position), [])) + 1
        told[int(position)].append(int(label))
    assert all(blank.pop() == EOP for blank in told.values())
    shown = piece.tokens[: piece.prefix].tolist()
    assert sorted(told) == [place for place, token in enumerate(shown) if token in (MASK, GMASK)]
    return [word for place, token in enumerate(shown) for word in told.get(place, [token])]


@given(length=st.integers(2, 200), index=st.integers(0, 500))
@settings(max_examples=80, deadline=None)
def test_blanks_and_what_is_around_them_make_the_text(length: int, index: int) -> None:
    text = text_of(length, index)
    piece = objective()(text, Draws(0, index))
    assert recover(piece) == text.tolist()
    assert len(piece) <= objective().places(length)
    assert piece.scored.sum() == len(piece) - piece.prefix


def test_places_count_on_with_one_position() -> None:
    piece = objective(two=False)(text_of(50), Draws(0, 1))
    assert piece.positions is piece.blocks is None
    assert not objective(two=False).positioned


def test_shares_are_the_published_ones() -> None:
    long, ends, orders = 0, [], 0
    for index in range(1500):
        piece = objective()(text_of(100), Draws(0, index))
        assert piece.positions is not None
        if GMASK in piece.tokens:
            long += 1
            assert piece.tokens[piece.prefix - 1] == GMASK, "the end of the text"
            ends.append(piece.scored.sum() - 1)
        else:
            starts = piece.positions[piece.tokens == SOP]
            assert piece.scored.sum() - len(starts) == 15
            orders += len(starts) > 1 and list(starts) != sorted(starts)
    assert abs(long / 1500 - 0.7) < 5 * np.sqrt(0.21 / 1500)
    assert (min(ends), max(ends)) == (20, 99)
    assert abs(np.mean(ends) - 59.5) < 5 * np.std(ends) / np.sqrt(long)
    assert orders > 0.8 * (1500 - long), "blanks come in random order"
