"""What an objective makes of a window of text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """One sequence of s places, as `engine.data.batch.MicroBatch` has them, without the batch dimension.

    `tokens`, `labels` int64 [s]; `loss_mask` float32, None when every label counts; `positions` int64, None for
    0..s-1; `documents` int64, the number of each place's document, None when attention ignores documents; `prefix`
    bool, True where a place is seen by the whole of its document and not by later places only, None for none;
    `blocks` int64 places inside a blank (GLM), None without such.
    """

    tokens: Ints
    labels: Ints
    loss_mask: NDArray[np.float32] | None = None
    positions: Ints | None = None
    documents: Ints | None = None
    prefix: NDArray[np.bool_] | None = None
    blocks: Ints | None = None


class Objective(Protocol):
    """A pure function: the same window, documents and place in the sample order give the same example."""

    @property
    def stride(self) -> int:
        """Tokens of text that each sample moves on by; its window holds one more."""

    def __call__(self, window: Ints, starts: Ints, index: int) -> Example:
        """`window` int64 [stride + 1]; `starts` where documents begin in it (1..stride); `index` addresses draws."""


class Vocabulary(Protocol):
    """What objectives ask of a tokenizer."""

    eod: int
    vocab_size: int

    def find(self, *names: str) -> int:
        """Return the id of the first of `names` that is a token; raise DataError when none is."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: list[int]) -> str: ...


def document_numbers(starts: Ints, length: int) -> Ints:
    """Return the number of each place's document, [length]."""
    marks = np.zeros(length + 1, dtype=np.int64)
    marks[starts[starts <= length]] = 1
    return np.cumsum(marks)[:length]


def document_positions(starts: Ints, length: int) -> Ints:
    """Return each place's distance from the start of its document, [length]."""
    begins = np.zeros(length + 1, dtype=np.int64)
    starts = starts[starts <= length]
    begins[starts] = starts
    return np.arange(length) - np.maximum.accumulate(begins)[:length]
