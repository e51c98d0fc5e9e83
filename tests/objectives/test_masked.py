"""BERT: 15% of the tokens, of which 80% are masked, 10% replaced, 10% kept; all others and every eod untouched."""

from __future__ import annotations

import numpy as np

from engine.objectives.draws import Draws
from engine.objectives.masked import Hiding, MaskedLM
from tests.objectives.words import EOD, text_of

MASK = 1


def test_hidden_tokens_are_told_and_others_seen() -> None:
    objective = MaskedLM(0.15, Hiding(MASK, 1000), EOD)
    masked = kept = others = 0
    hit = np.zeros(100)
    for index in range(600):
        text = text_of(100, index)
        text[[10, 99]] = EOD
        piece = objective(text, Draws(0, index))
        assert piece.prefix == len(piece) == 100
        assert (piece.labels == text).all()
        assert piece.scored.sum() == 15
        assert (piece.tokens == text)[~piece.scored].all()
        hidden, true = piece.tokens[piece.scored], text[piece.scored]
        masked, kept = masked + (hidden == MASK).sum(), kept + (hidden == true).sum()
        others += ((hidden != MASK) & (hidden != true)).sum()
        hit += piece.scored
    assert hit[10] == hit[99] == 0
    assert abs(np.delete(hit, [10, 99]) - 9000 / 98).max() < 50
    for count, share in ((masked, 0.8), (others, 0.1), (kept, 0.1)):
        assert abs(count / 9000 - share) < 5 * np.sqrt(share * (1 - share) / 9000)


def test_replacements_come_from_the_whole_vocabulary() -> None:
    chosen = np.arange(20_000)
    hidden = Hiding(MASK, 50)(np.full(20_000, 7), chosen, Draws(0, 0))
    replaced = hidden[(hidden != MASK) & (hidden != 7)]
    assert set(replaced.tolist()) == set(range(50)) - {MASK, 7}


def test_a_text_of_ends_alone_has_nothing_to_tell() -> None:
    piece = MaskedLM(0.15, Hiding(MASK, 9), EOD)(np.full(5, EOD), Draws(0, 0))
    assert not piece.scored.any()
