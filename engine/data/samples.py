"""The global stream of training samples: a pure function of (seed, corpus, index)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.data.blend import Blend
from engine.data.indexed import IndexedDataset
from engine.data.order import Permutation
from engine.data.split import Split
from engine.errors import DataError


@dataclass(frozen=True)
class Sample:
    """One packed window of tokens [s + 1], where documents begin in it (indices in 1..s), its place in the order."""

    window: NDArray[np.int64]
    document_starts: NDArray[np.int64]
    index: int = 0


class Samples:
    """Sample k of a blend of splits; epochs of each split are shuffled anew (in order when `shuffle` is off)."""

    def __init__(
        self, splits: Sequence[Split], weights: Sequence[float], seed: int, vocab: int, *, shuffle: bool = True
    ) -> None:
        self.splits, self.seed, self.vocab, self.shuffle = list(splits), seed, vocab, shuffle
        self.blend = Blend(weights)
        self._orders: dict[tuple[int, int], Permutation] = {}

    @property
    def per_epoch(self) -> int:
        """Samples in one pass over every split."""
        return sum(split.samples for split in self.splits)

    def locate(self, index: int) -> tuple[int, int]:
        """Return (split, sample inside it) of global sample `index`."""
        source, number = self.blend(index)
        epoch, place = divmod(number, self.splits[source].samples)
        if not self.shuffle:
            return source, place
        return source, self._order(source, epoch)(place)

    def _order(self, source: int, epoch: int) -> Permutation:
        if (source, epoch) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[0] != source}
            self._orders[source, epoch] = Permutation(self.splits[source].samples, self.seed, "order", source, epoch)
        return self._orders[source, epoch]

    def __getitem__(self, index: int) -> Sample:
        source, place = self.locate(index)
        split = self.splits[source]
        begin, end = split.window(place)
        window = split.dataset.read(begin, end)
        check_tokens(split.dataset, begin, window, self.vocab)
        starts = split.dataset.starts_within(begin, end) - begin
        return Sample(window, starts, index)


def check_tokens(dataset: IndexedDataset, begin: int, window: NDArray[np.int64], vocab: int) -> None:
    """Raise DataError for the first of the tokens that begin at `begin` which is outside the vocabulary."""
    if window.max() < vocab and window.min() >= 0:
        return
    place = int(np.argmax((window >= vocab) | (window < 0)))
    document = dataset.document_of(begin + place)
    raise DataError(
        f"{dataset.prefix}.bin, document {document}: token id {int(window[place])} is outside the vocabulary "
        f"of {vocab}; use the tokenizer the corpus was made with, or set model.vocab_size."
    )
