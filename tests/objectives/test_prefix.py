"""Prefix language modelling: any cut, and only what is behind it is predicted."""

from __future__ import annotations

import numpy as np

from engine.objectives.draws import Draws
from engine.objectives.prefix import PrefixLM
from tests.objectives.words import halves, text_of


def test_a_text_is_cut_anywhere_and_its_end_predicted() -> None:
    text = text_of(9)
    cuts = []
    for index in range(1600):
        given, predicted = halves(PrefixLM()(text, Draws(0, index)))
        assert given + predicted == text.tolist()
        cuts.append(len(given))
    counts = np.bincount(cuts, minlength=9)[1:]
    assert len(counts) == 8
    assert abs(counts - 200).max() < 5 * np.sqrt(200)
