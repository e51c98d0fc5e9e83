"""Causal windows: shifted labels, and the loss of guessing a new document left out on request."""

from __future__ import annotations

import numpy as np

from engine.objectives.causal import Causal

WINDOW, STARTS = np.array([4, 5, 0, 6, 7]), np.array([3])


def test_labels_are_the_next_tokens() -> None:
    example = Causal(4, eod=0)(WINDOW, STARTS)
    assert example.tokens.tolist() == [4, 5, 0, 6]
    assert example.labels.tolist() == [5, 0, 6, 7]
    assert (example.loss_mask, example.positions, example.documents, example.prefix) == (None, None, None, None)


def test_the_label_after_an_end_of_document_can_be_left_out() -> None:
    mask = Causal(4, eod=0, eod_loss=False)(WINDOW, STARTS).loss_mask
    assert mask is not None
    assert mask.tolist() == [1, 1, 0, 1]


def test_documents_are_told_apart_on_request() -> None:
    example = Causal(4, document_mask=True, position_reset=True)(WINDOW, STARTS)
    assert example.documents is not None
    assert example.positions is not None
    assert example.documents.tolist() == [0, 0, 0, 1]
    assert example.positions.tolist() == [0, 1, 2, 0]
    beyond = Causal(4, document_mask=True)(WINDOW, np.array([4])).documents
    assert beyond is not None
    assert beyond.tolist() == [0, 0, 0, 0]
