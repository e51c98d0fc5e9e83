"""Causal windows: shifted labels, and the loss of guessing a new document left out on request."""

from __future__ import annotations

import numpy as np

from engine.objectives.causal import Causal

WINDOW = np.array([4, 5, 0, 6, 7])


def test_labels_are_the_next_tokens() -> None:
    tokens, labels, mask = Causal(eod=0)(WINDOW)
    assert tokens.tolist() == [4, 5, 0, 6]
    assert labels.tolist() == [5, 0, 6, 7]
    assert mask is None


def test_the_label_after_an_end_of_document_can_be_left_out() -> None:
    _, _, mask = Causal(eod=0, eod_loss=False)(WINDOW)
    assert mask is not None
    assert mask.tolist() == [1, 1, 0, 1]
