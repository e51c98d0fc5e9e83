"""Train, validation and test parts of a corpus: ranges of whole documents by shares such as [969, 30, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.data.indexed import IndexedDataset
from engine.errors import DataError

NAMES = ("train", "valid", "test")


@dataclass(frozen=True)
class Split:
    """Documents packed end to end: tokens [start, stop) of a corpus, cut into samples of `seq_len` + 1 tokens.

    Neighbouring samples share one token: the last label of one is the first input of the next.
    """

    dataset: IndexedDataset
    name: str
    start: int
    stop: int
    seq_len: int

    @property
    def samples(self) -> int:
        return max(0, (self.stop - self.start - 1) // self.seq_len)

    def window(self, sample: int) -> tuple[int, int]:
        """Return the corpus tokens [begin, end) of a sample."""
        begin = self.start + sample * self.seq_len
        return begin, begin + self.seq_len + 1


def split_documents(documents: int, parts: Sequence[float]) -> list[tuple[int, int]]:
    """Return the document ranges of train, valid and test; every positive share gets at least one document."""
    total = sum(parts)
    edges = [0]
    for index in range(3):
        edges.append(round(documents * sum(parts[: index + 1]) / total))
    edges[3] = documents
    if parts[1] > 0 and documents > 1 and edges[1] == documents:
        edges[1] = documents - 1  # a small corpus: rounding must not swallow the validation part
        edges[2] = documents
    return [(edges[i], edges[i + 1]) for i in range(3)]


def make_split(dataset: IndexedDataset, name: str, split: Sequence[float], seq_len: int) -> Split | None:
    """Return one part of a corpus, None when its share is 0; raise DataError when it holds no whole sample."""
    index = NAMES.index(name)
    if split[index] == 0:
        return None
    first, last = split_documents(dataset.documents, split)[index]
    part = Split(dataset, name, dataset.document_start(first), dataset.document_start(last), seq_len)
    if part.samples == 0:
        without = "write data.split=[1,0,0] to train without validation" if name == "valid" else "change data.split"
        raise DataError(
            f"the {name} part of {dataset.prefix} has {part.stop - part.start} tokens in {last - first} documents of "
            f"{dataset.documents}, less than one sample of {seq_len} + 1; {without}, lower data.seq_len, "
            "or add documents."
        )
    return part
