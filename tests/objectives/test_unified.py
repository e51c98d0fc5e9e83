"""UniLM: hidden tokens under four kinds of attention, in the published shares."""

from __future__ import annotations

import numpy as np

from engine.objectives.draws import Draws
from engine.objectives.masked import Hiding
from engine.objectives.unified import UnifiedLM
from tests.objectives.words import EOD, text_of

MASK = 1


def test_kinds_of_attention_and_what_is_hidden() -> None:
    objective = UnifiedLM(0.15, Hiding(MASK, 1000), EOD)
    kinds = dict.fromkeys(("both", "parts", "right", "left"), 0)
    masked = single = groups = 0
    for index in range(1200):
        text = text_of(60, index)
        text[7] = EOD
        piece = objective(text, Draws(0, index))
        assert piece.positions is not None
        backwards = piece.positions[0] == 59
        assert piece.positions.tolist() == list(range(60))[:: -1 if backwards else 1]
        assert (piece.labels[np.argsort(piece.positions)] == text).all()
        assert piece.scored.sum() == 9
        assert not piece.scored[piece.labels == EOD].any()
        assert (piece.tokens == piece.labels)[~piece.scored].all()
        kind = "left" if backwards else "both" if piece.prefix == 60 else "parts" if piece.prefix else "right"
        kinds[kind] += 1
        masked += (piece.tokens[piece.scored] == MASK).sum()
        lengths = [len(part) for part in np.split(piece.scored, np.flatnonzero(np.diff(piece.scored)) + 1) if part[0]]
        single, groups = single + sum(n == 1 for n in lengths), groups + len(lengths)
    for kind, share in (("both", 1 / 3), ("parts", 1 / 3), ("right", 1 / 6), ("left", 1 / 6)):
        assert abs(kinds[kind] / 1200 - share) < 5 * np.sqrt(share * (1 - share) / 1200), kind
    assert abs(masked / (9 * 1200) - 0.8) < 0.03
    assert 0.6 < single / groups < 0.85, "80% of the groups, less those that came to lie side by side"
