"""AlexaTM: 80% restore a text from which 15% was dropped without a mark, 20% continue one behind [CLM]."""

from __future__ import annotations

import numpy as np
import pytest

from engine.objectives.alexatm import DenoiseOrContinue
from engine.objectives.draws import Draws
from tests.objectives.words import EOD, halves, text_of

CLM = 1


@pytest.mark.parametrize("length", [2, 7, 100])
def test_what_is_given_and_what_is_written(length: int) -> None:
    objective = DenoiseOrContinue(0.15, 3.0, 0.2, CLM, EOD)
    continued, shares = 0, []
    for index in range(800):
        text = np.arange(100, 100 + length)
        piece = objective(text, Draws(0, index))
        assert len(piece) <= objective.places(length)
        given, written = halves(piece)
        assert given.pop() == written.pop() == EOD
        if given[0] == CLM:
            continued += 1
            assert given[1:] + written == text.tolist()
            shares.append(len(given[1:]) / length)
        else:
            assert written == text.tolist()
            assert len(given) == length - min(max(round(0.15 * length), 1), length - 1)
            assert set(given) < set(written)
            assert given == sorted(given), "what is kept stays in order"
    assert abs(continued / 800 - 0.2) < 5 * np.sqrt(0.16 / 800)
    if length == 100:
        assert (min(shares) < 0.25, max(shares) > 0.75) == (True, True)
        assert all(0.2 <= share <= 0.8 for share in shares)
        assert abs(np.mean(shares) - 0.5) < 0.07


def test_the_longest_is_the_one_that_repeats_the_text() -> None:
    objective = DenoiseOrContinue(0.15, 3.0, 0.0, CLM, EOD)
    assert len(objective(text_of(100), Draws(0, 0))) == objective.places(100) == 85 + 1 + 100 + 1 - 1
