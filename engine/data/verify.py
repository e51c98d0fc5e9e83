"""What can be said of a corpus's files: all there is, in the time it takes to read them, or enough to know it by."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from engine.data.indexed import IndexedDataset, bin_path, idx_path
from engine.data.preprocess import open_index, read_meta
from engine.data.tokenizer import Tokenizer
from engine.errors import DataError

_BLOCK, _BLOCKS = 4096, 16
_STEP = 1 << 20  # sequences, or tokens, looked at together


def fingerprint(dataset: IndexedDataset) -> str:
    """Return a hash of the sizes and of a few blocks of both files: another corpus has another one.

    It reads 128 KiB however large the corpus is, so a flipped bit may go unseen: `verify` finds that.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in (idx_path(dataset.prefix), bin_path(dataset.prefix)):
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            for block in range(_BLOCKS):
                file.seek(max(0, size - _BLOCK) * block // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def verify(prefix: str | Path, tokenizer: Tokenizer | None = None) -> str:
    """Read all of a corpus and return a line about it; DataError names the file and what is wrong in it.

    Without a `tokenizer`, ids are held to the vocabulary that the sidecar names, if there is one.
    """
    dataset, meta = open_index(prefix, tokenizer), read_meta(prefix)
    _verify_index(dataset)
    vocab = tokenizer.vocab_size if tokenizer else meta.vocab_size if meta else None
    _verify_tokens(dataset, vocab)
    if meta is not None:
        _verify_sums(dataset, {idx_path(prefix): meta.idx_sha256, bin_path(prefix): meta.bin_sha256})
    checked = f"ids below {vocab:,}" if vocab else "ids not known to fit a vocabulary"
    sums = "sha256 as written" if meta and meta.bin_sha256 else "no sha256 to compare with"
    return f"{prefix}: {dataset.documents:,} documents, {dataset.tokens:,} tokens, {checked}, {sums}"


def _verify_index(dataset: IndexedDataset) -> None:
    """Hold every pointer to the lengths before it, and the documents to an order."""
    path, end = idx_path(dataset.prefix), 0
    for first in range(0, len(dataset.lengths), _STEP):
        lengths = dataset.lengths[first : first + _STEP].astype(np.int64)
        pointers = end + np.concatenate(([0], np.cumsum(lengths))) * dataset.dtype.itemsize
        wrong = (lengths < 0) | (dataset.pointers[first : first + _STEP] != pointers[:-1])
        if wrong.any():
            at = int(np.argmax(wrong))
            raise DataError(
                f"{path}: sequence {first + at} has length {lengths[at]} and pointer {dataset.pointers[first + at]}, "
                f"where {pointers[at]} was expected; index the corpus again."
            )
        end = int(pointers[-1])
    for first in range(0, len(dataset.document_indices) - 1, _STEP):
        falls = np.diff(dataset.document_indices[first : first + _STEP + 1]) < 0
        if falls.any():
            raise DataError(f"{path}: document {first + int(np.argmax(falls))} ends before it begins.")


def _verify_tokens(dataset: IndexedDataset, vocab: int | None) -> None:
    for first in range(0, dataset.tokens, _STEP):
        tokens = dataset.read(first, min(first + _STEP, dataset.tokens))
        wrong = (tokens < 0) | (tokens >= vocab) if vocab else tokens < 0
        if wrong.any():
            at = int(np.argmax(wrong))
            raise DataError(
                f"{bin_path(dataset.prefix)}, document {dataset.document_of(first + at)}: token id {tokens[at]} is "
                f"outside the vocabulary{f' of {vocab}' if vocab else ''}."
            )


def _verify_sums(dataset: IndexedDataset, sums: dict[Path, str]) -> None:
    for path, wanted in sums.items():
        with path.open("rb") as file:
            if wanted and hashlib.file_digest(file, "sha256").hexdigest() != wanted:
                raise DataError(f"{path} is damaged: its sha256 is not that of the sidecar {dataset.prefix}.meta.json.")
