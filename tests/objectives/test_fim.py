"""Fill in the middle: both orders, cut between characters or tokens, nothing lost, documents apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.objectives.fim import FillInMiddle
from tests.objectives.words import EOD, FIRST, Words

PREFIX, SUFFIX, MIDDLE = 1, 2, 3
NONE = np.array([], dtype=np.int64)


class Pairs(Words):
    """Every token is two characters: cuts between characters cut tokens."""

    def encode(self, text: str) -> list[int]:
        codes = [*map(ord, text), 0]
        return [FIRST + 100 * codes[n] + codes[n + 1] for n in range(0, len(text), 2)]

    def decode(self, tokens: list[int]) -> str:
        codes = [code for token in tokens for code in divmod(token - FIRST, 100) if code]
        return "".join(map(chr, codes))


def make(seq_len: int = 255, vocabulary: Words | None = None, **changes: object) -> FillInMiddle:
    options = {"rate": 0.5, "spm": 0.5, "by_character": False, "seed": 1, "document_mask": False,
               "position_reset": False, **changes}  # fmt: skip
    return FillInMiddle(seq_len, vocabulary or Words(), (PREFIX, SUFFIX, MIDDLE), **options)  # type: ignore[arg-type]


def parts(told: list[int]) -> tuple[str, list[int], list[int], list[int]]:
    """Return the order of a rearranged document, and its prefix (with the middle in spm), middle and suffix."""
    at, between = told.index(SUFFIX), told.index(MIDDLE)
    assert told[0] == PREFIX
    assert sum(token in (PREFIX, SUFFIX, MIDDLE) for token in told) == 3
    if at == 1:
        return "spm", told[between + 1 :], [], told[at + 1 : between]
    return "psm", told[1:at], told[between + 1 :], told[at + 1 : between]


def test_both_orders_and_every_cut() -> None:
    text = np.array([101, 102, 103])
    seen: dict[str, set[tuple[int, ...]]] = {"plain": set(), "psm": set(), "spm": set()}
    counts = dict.fromkeys(seen, 0)
    for index in range(2000):
        (told,) = make().documents(text, NONE, index)
        if told[0] != PREFIX:
            kind, made = "plain", told.tolist()
        else:
            kind, prefix, middle, suffix = parts(told.tolist())
            made = prefix + middle + suffix
        assert made == text.tolist()
        counts[kind] += 1
        seen[kind].add(tuple(told.tolist()))
    assert len(seen["psm"]) == 6, "all pairs of places 1..3; without a prefix both orders are one"
    assert len(seen["spm"]) == 4, "which of places 0..3 the suffix begins at"
    assert (1, 101, 2, 103, 3, 102) in seen["psm"]
    assert (1, 2, 103, 3, 101, 102) in seen["spm"]
    no_prefix = 7 / 16
    for kind, share in (("plain", 0.5), ("psm", 0.25 * (1 - no_prefix)), ("spm", 0.25 * (1 + no_prefix))):
        assert abs(counts[kind] / 2000 - share) < 5 * np.sqrt(share * (1 - share) / 2000)


def test_cuts_between_characters_may_cut_tokens() -> None:
    vocabulary = Pairs()
    tokens = np.array(vocabulary.encode("ABCDEFGH"))
    assert len(tokens) == 4
    lengths = set()
    for index in range(60):
        objective = make(vocabulary=vocabulary, by_character=True, rate=1.0)
        (told,) = objective.documents(np.append(tokens, EOD), NONE, index)
        assert told[-1] == EOD
        _, prefix, middle, suffix = parts(told[:-1].tolist())
        lengths.add(len(vocabulary.decode(prefix)))
        assert vocabulary.decode(prefix) + vocabulary.decode(middle) + vocabulary.decode(suffix) == "ABCDEFGH"
    assert any(length % 2 for length in lengths)


def test_tokens_that_end_inside_a_character_are_not_cut() -> None:
    class Torn(Words):
        def decode(self, tokens: list[int]) -> str:
            return "\ufffd"

    (told,) = make(vocabulary=Torn(), by_character=True, rate=1.0).documents(np.array([101, 102]), NONE, 0)
    _, prefix, middle, suffix = parts(told.tolist())
    assert prefix + middle + suffix == [101, 102]


@given(ends=st.lists(st.integers(1, 40), min_size=1, max_size=30), index=st.integers(0, 50), reset=st.booleans())
@settings(max_examples=40, deadline=None)
def test_documents_stay_apart_and_nothing_is_lost(ends: list[int], index: int, reset: bool) -> None:
    objective = make(100, document_mask=True, position_reset=reset, rate=0.9)
    text = np.arange(200, 201 + objective.stride)
    starts = np.cumsum(ends)
    starts = starts[starts <= objective.stride]
    text[starts - 1] = EOD
    example = objective(text, starts, index)
    told = objective.documents(text[: objective.stride], starts, index)
    assert example.documents is not None
    assert example.loss_mask is not None
    whole = [token for document in told for token in document.tolist()]
    assert sorted(t for t in whole if t > 3 or t == EOD) == sorted(text[: objective.stride].tolist())
    assert example.tokens.tolist()[: len(whole)] == whole[:100]
    assert example.loss_mask.sum() == min(len(whole) - 1, 100)
    assert np.bincount(example.documents)[: len(told) - 1].tolist() == [len(document) for document in told[:-1]]
    assert (example.positions is None) != reset


@pytest.mark.parametrize("seq_len", [16, 255, 256, 257])
def test_there_is_room_for_a_mark_in_every_sample(seq_len: int) -> None:
    objective = make(seq_len, rate=1.0)
    window = np.arange(100, 101 + objective.stride)
    assert PREFIX in objective(window, NONE, 0).tokens
