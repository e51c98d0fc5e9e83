"""Train, validation and test parts of a corpus: ranges of whole documents by shares such as "969,30,1"."""

from __future__ import annotations

from dataclasses import dataclass

from engine.data.indexed import IndexedDataset
from engine.errors import ConfigError, DataError

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


def shares(text: str) -> tuple[float, float, float]:
    """Read "969,30,1"; raise ConfigError when it is not three shares with a positive first one."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3 or min(values) < 0 or values[0] <= 0:
        raise ConfigError(f"data.split='{text}' must be three shares train,valid,test such as 969,30,1.")
    return values[0], values[1], values[2]


def split_documents(documents: int, split: str) -> list[tuple[int, int]]:
    """Return the document ranges of train, valid and test; every positive share gets at least one document."""
    parts = shares(split)
    total = sum(parts)
    edges = [0]
    for index in range(3):
        edges.append(round(documents * sum(parts[: index + 1]) / total))
    edges[3] = documents
    if parts[1] > 0 and documents > 1 and edges[1] == documents:
        edges[1] = documents - 1  # a small corpus: rounding must not swallow the validation part
        edges[2] = documents
    return [(edges[i], edges[i + 1]) for i in range(3)]


def make_split(dataset: IndexedDataset, name: str, split: str, seq_len: int) -> Split | None:
    """Return one part of a corpus, None when its share is 0; raise DataError when it holds no whole sample."""
    index = NAMES.index(name)
    if shares(split)[index] == 0:
        return None
    first, last = split_documents(dataset.documents, split)[index]
    part = Split(dataset, name, dataset.document_start(first), dataset.document_start(last), seq_len)
    if part.samples == 0:
        raise DataError(
            f"the {name} part of {dataset.prefix} has {part.stop - part.start} tokens in {last - first} documents, "
            f"less than one sample of data.seq_len={seq_len} + 1; add text, change data.split={split}, or lower it."
        )
    return part
