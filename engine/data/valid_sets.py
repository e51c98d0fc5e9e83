"""Validation sets by name (`data.valid`): whole corpora, every token of which is predicted exactly once.

The documents of a corpus are laid end to end after an end-of-document token, as training packs them, and cut into
windows of data.seq_len predictions; the last window is as long as what is left.

A set of paths is one text, in which every token counts alike. A set with weights, `[[0.7, a], [0.3, b]]`, is scored as
the endless stream that holds tokens of its corpora in these shares.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engine.config import DataConfig
from engine.data.build import Preparation, Source, read_source
from engine.data.indexed import IndexedDataset
from engine.data.preprocess import open_index
from engine.data.samples import Sample, check_tokens
from engine.data.tokenizer import Tokenizer
from engine.errors import ConfigError, DataError

_NAME = re.compile(r"[A-Za-z0-9_-]+")


class Windows:
    """The windows of a corpus in order. Each is up to `seq_len` + 1 tokens, of which all but the first are predicted.

    `eod` stands before the first document; None where there is no such token: then nothing predicts the first one.
    """

    def __init__(self, dataset: IndexedDataset, seq_len: int, eod: int | None, vocab: int) -> None:
        self.dataset, self.seq_len, self.eod, self.vocab = dataset, seq_len, eod, vocab
        self.predicted = dataset.tokens - (eod is None)

    def __len__(self) -> int:
        return -(-self.predicted // self.seq_len)

    def __getitem__(self, number: int) -> Sample:
        lead = self.eod is not None  # the stream is one token ahead of the corpus
        first, stop = number * self.seq_len, min((number + 1) * self.seq_len, self.predicted) + 1
        begin, end = max(0, first - lead), stop - lead
        window = self.dataset.read(begin, end)
        check_tokens(self.dataset, begin, window, self.vocab)
        starts = self.dataset.starts_within(begin, end) - begin
        if lead and number == 0:
            window, starts = np.concatenate([[self.eod], window]), np.concatenate([[1], starts + 1])
        return Sample(window, starts)


class Part(Protocol):
    """Windows that are scored, as `Windows` are."""

    vocab: int

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Sample: ...


@dataclass(frozen=True)
class ValidSet:
    """A named set: its corpora, and their shares in the stream of tokens (None: as many as each has)."""

    name: str
    parts: Sequence[Part]
    shares: list[float] | None


def read_valid_sets(valid: dict[str, Any]) -> dict[str, list[Source]]:
    """Return the sources of each set of data.valid; ConfigError says what is no set."""
    sources = {}
    for name, value in valid.items():
        key = f"data.valid.{name}"
        if not _NAME.fullmatch(name):
            raise ConfigError(f"data.valid: a set cannot be called {name!r}; write letters, digits, '_' and '-'.")
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, list) or not entries:
            raise ConfigError(f"{key}={value!r} is no set; write {key}=PATH, or a list of paths or [weight, path].")
        sources[name] = [read_source(entry, "auto", key) for entry in entries]
    return sources


def open_valid_sets(
    config: DataConfig,
    tokenizer: Tokenizer | None,
    tokenizer_file: Path | None,
    vocab: int,
    *,
    is_writer: bool,
    barrier: Callable[[], None],
    notice: Callable[[str], None],
) -> list[ValidSet]:
    """Index what is not in the cache yet, by the writing rank, and open the sets of data.valid in their order."""
    chosen = replace(config, tokenizer=str(tokenizer_file) if tokenizer_file else "none")
    preparations = {
        name: Preparation(chosen, sources, [], notice, f"data.valid.{name}")
        for name, sources in read_valid_sets(config.valid).items()
    }
    if is_writer:
        for preparation in preparations.values():
            preparation.run()
    if preparations:
        barrier()
    eod = tokenizer.eod if tokenizer is not None and config.append_eod else None
    found = []
    for name, preparation in preparations.items():
        datasets = [open_index(prefix, tokenizer) for prefix in preparation.prefixes()]
        parts = [Windows(dataset, config.seq_len, eod, vocab) for dataset in datasets]
        if any(len(part) == 0 for part in parts):
            raise DataError(f"data.valid.{name} holds a corpus of one token, which nothing predicts; leave it out.")
        shares = [source.weight for source in preparation.sources]
        is_blend = any(not isinstance(entry, str) for entry in config.valid[name])
        found.append(ValidSet(name, parts, shares if is_blend else None))
    return found
