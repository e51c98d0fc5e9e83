"""Span corruption (T5, arXiv 1910.10683): spans are cut out, a sentinel marks each; tell what each sentinel stands for.

inputs: Thank you <extra_id_0> me to your party <extra_id_1> week; targets: <extra_id_0> for inviting <extra_id_1> last.
As T5's code has it: a text begins with a kept span and ends with a cut one, and no sentinel follows the last span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.objectives.draws import Draws
from engine.objectives.example import Ints
from engine.objectives.noise import Bools, noise_count, span_count, span_mask
from engine.objectives.packed import Piece, shifted


def corrupt(text: Ints, mask: Bools, sentinels: Ints) -> tuple[Ints, Ints]:
    """Return (inputs, targets) of a text whose noise is True in `mask`; `sentinels` as many as spans, or more."""
    begins = mask & ~np.concatenate([[False], mask[:-1]])
    numbers = np.cumsum(begins) - 1
    marked = np.where(begins, sentinels[numbers.clip(min=0)], text)
    inputs = marked[~mask | begins]
    places = np.flatnonzero(begins)
    targets = np.insert(text, places, sentinels[: len(places)])
    return inputs, targets[np.insert(mask, places, True)]


def two_sequences(text: Ints, noise: float, span: float, sentinels: Ints, eos: int, draws: Draws) -> tuple[Ints, Ints]:
    """Return T5's own form, for an encoder and a decoder: inputs and targets, both with `eos` behind."""
    inputs, targets = corrupt(text, span_mask(len(text), noise, span, draws), sentinels)
    return np.append(inputs, eos), np.append(targets, eos)


def two_lengths(inputs: int, noise: float, span: float) -> tuple[int, int]:
    """Return the most text whose encoder sequence fits `inputs` tokens, and the length of its targets.

    512 tokens of inputs hold 568 of text and give 114 of targets, at T5's noise of 0.15 and spans of 3.
    """

    def lengths(text: int) -> tuple[int, int]:
        cut, spans = noise_count(text, noise), span_count(text, noise, span)
        return text - cut + spans + 1, cut + spans + 1

    text = inputs
    while lengths(text + 1)[0] <= inputs:
        text += 1
    if noise == 0.5 and lengths(text)[1] > lengths(text)[0]:  # T5's code does so, to have both equally long
        return text - 1, lengths(text)[1] - 1
    return text, lengths(text)[1]


@dataclass(frozen=True)
class SpanCorruption:
    """One sequence for a decoder: [mode], inputs, seen whole, then targets and `eod`."""

    noise: float
    span: float
    sentinels: Sequence[int]
    eod: int
    mode: int | None = None

    positioned = blocked = False

    def places(self, length: int) -> int:
        return length + 2 * self.spans(length) + (self.mode is not None)

    def spans(self, length: int) -> int:
        return span_count(length, self.noise, self.span)

    def __call__(self, text: Ints, draws: Draws) -> Piece:
        mask = span_mask(len(text), self.noise, self.span, draws)
        inputs, targets = corrupt(text, mask, np.asarray(self.sentinels))
        front = [] if self.mode is None else [self.mode]
        return shifted(np.concatenate([front, inputs, targets, [self.eod]]).astype(np.int64), len(front) + len(inputs))
