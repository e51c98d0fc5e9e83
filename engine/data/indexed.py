"""Megatron's indexed format: `prefix.bin` holds raw tokens, `prefix.idx` says where documents lie.

Layout of .idx, little endian: magic "MMIDIDX\\0\\0", uint64 version 1, uint8 dtype code, uint64 sequence count S,
uint64 document count D (documents + 1), int32 lengths[S], int64 byte pointers[S], int64 document indices[D].
Opening maps the files and reads a handful of numbers, however large the corpus is.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from engine.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, type[np.generic]] = {
    1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.float64, 7: np.float32, 8: np.uint16,
}  # fmt: skip


def token_dtype(vocab: int) -> type[np.generic]:
    """Return the dtype Megatron stores a vocabulary in: uint16 below 65,500 entries, else int32."""
    return np.uint16 if vocab < 65500 else np.int32


def bin_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.idx")


class IndexedDataset:
    """A read-only indexed corpus; raises DataError with the file and field when it cannot be whole."""

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = str(prefix)
        for path in (idx_path(prefix), bin_path(prefix)):
            if not path.is_file():
                raise DataError(f"{path} is missing; an indexed corpus is a .bin and an .idx of one name.")
        self._read_header()
        self._check_ends()

    def _read_header(self) -> None:
        path = idx_path(self.prefix)
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEADER.size)
        if len(head) < HEADER.size:
            raise DataError(f"{path} is truncated: {size} bytes, less than a header; index the corpus again.")
        magic, version, code, sequences, documents = HEADER.unpack(head)
        if magic != MAGIC:
            raise DataError(f"{path} is not an index: its first bytes are {magic!r}, not {MAGIC!r}.")
        if version != 1:
            raise DataError(f"{path} has version {version}; only version 1 is known.")
        if code not in DTYPES or code in (6, 7):
            raise DataError(f"{path} has dtype code {code}, which does not hold tokens (1-5 and 8 do).")
        needed = HEADER.size + 12 * sequences + 8 * documents
        if size not in (needed, needed + sequences):  # the longer form ends in modes of multimodal data
            raise DataError(
                f"{path} has {size} bytes, but {sequences} sequences and {documents} document indices make {needed}; "
                "it was cut off or mixed up: index the corpus again."
            )
        self.dtype = np.dtype(DTYPES[code])
        raw = np.memmap(path, mode="r", dtype=np.uint8)
        begin = HEADER.size
        self.lengths: NDArray[np.int32] = raw[begin : begin + 4 * sequences].view(np.int32)
        self.pointers: NDArray[np.int64] = raw[begin + 4 * sequences : begin + 12 * sequences].view(np.int64)
        self.document_indices: NDArray[np.int64] = raw[begin + 12 * sequences : needed].view(np.int64)

    def _check_ends(self) -> None:
        path = bin_path(self.prefix)
        size, item = path.stat().st_size, self.dtype.itemsize
        end = int(self.pointers[-1]) + int(self.lengths[-1]) * item if len(self.pointers) else 0
        if end != size:
            raise DataError(f"{path} has {size} bytes, but its index ends at {end}; the pair was cut off or mixed up.")
        if len(self.pointers) and int(self.pointers[0]) != 0:
            raise DataError(f"{idx_path(self.prefix)}: the first pointer is {int(self.pointers[0])}, not 0.")
        if len(self.document_indices) == 0 or int(self.document_indices[-1]) != len(self.pointers):
            raise DataError(f"{idx_path(self.prefix)}: document indices do not end at {len(self.pointers)} sequences.")
        if int(self.document_indices[0]) != 0:
            raise DataError(f"{idx_path(self.prefix)}: the first document begins at {self.document_indices[0]}, not 0.")
        self._tokens = np.memmap(path, mode="r", dtype=self.dtype) if size else np.zeros(0, self.dtype)

    @property
    def documents(self) -> int:
        return len(self.document_indices) - 1

    @property
    def tokens(self) -> int:
        return len(self._tokens)

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return tokens [start, stop) of all documents laid end to end, as int64."""
        return self._tokens[start:stop].astype(np.int64)

    def document_start(self, document: int) -> int:
        """Return the first token of a document (the end of the corpus for `documents`)."""
        sequence = int(self.document_indices[document])
        if not 0 <= sequence <= len(self.pointers):
            raise self._damaged(document)
        if sequence == len(self.pointers):
            return self.tokens
        token, rest = divmod(int(self.pointers[sequence]), self.dtype.itemsize)
        if rest or not 0 <= token <= self.tokens:
            raise self._damaged(document)
        return token

    def document_of(self, token: int) -> int:
        """Return the document that holds a token, by binary search."""
        # bisect, because np.searchsorted copies a whole array that is not aligned, and the header has 34 bytes
        sequence = bisect.bisect_right(self.pointers, token * self.dtype.itemsize) - 1
        return bisect.bisect_right(self.document_indices, sequence) - 1

    def starts_within(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the first tokens of all documents that begin inside (start, stop)."""
        first, last = self.document_of(start) + 1, self.document_of(stop - 1) + 1
        sequences = np.asarray(self.document_indices[first:last])
        if ((sequences < 0) | (sequences >= len(self.pointers))).any():
            raise self._damaged(first)
        starts = np.asarray(self.pointers[sequences]) // self.dtype.itemsize
        if ((starts <= start) | (starts >= stop)).any():
            raise self._damaged(first)
        return starts

    def _damaged(self, document: int) -> DataError:
        return DataError(
            f"{idx_path(self.prefix)} is damaged: document {document} or one near it lies outside the corpus; index it "
            "again (launch/preprocess.py --verify says more)."
        )


class IndexedWriter:
    """Writes documents one after the other; the pair appears under its name only when `close` has made it whole."""

    def __init__(self, prefix: str | Path, dtype: type[np.generic]) -> None:
        self.prefix, self.dtype = str(prefix), np.dtype(dtype)
        self.empty = 0  # documents left out because they hold no token
        self.sha256: dict[str, str] = {}  # of the pair's files by their ending, once they are whole
        self._bin_sha256 = hashlib.sha256()
        self._lengths: list[int] = []
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        self._bin = open(f"{prefix}.bin.tmp", "wb")  # noqa: SIM115 (closed by close or abort)

    def add(self, tokens: Sequence[int] | NDArray[np.integer]) -> None:
        """Append one document; an empty one is counted and left out."""
        if len(tokens) == 0:
            self.empty += 1
            return
        data = np.asarray(tokens, dtype=self.dtype).tobytes()
        self._bin.write(data)
        self._bin_sha256.update(data)
        self._lengths.append(len(tokens))

    def add_all(self, documents: Iterable[Sequence[int]]) -> None:
        for tokens in documents:
            self.add(tokens)

    def close(self) -> None:
        """Write the index and give both files their names, the tokens first."""
        lengths = np.asarray(self._lengths, dtype=np.int32)
        pointers = np.zeros(len(lengths), dtype=np.int64)
        np.cumsum(lengths[:-1].astype(np.int64) * self.dtype.itemsize, out=pointers[1:])
        code = next(code for code, kind in DTYPES.items() if np.dtype(kind) == self.dtype)
        header = HEADER.pack(MAGIC, 1, code, len(lengths), len(lengths) + 1)
        idx_sha256 = hashlib.sha256()
        with open(f"{self.prefix}.idx.tmp", "wb") as index:
            for array in (header, lengths.data, pointers.data, np.arange(len(lengths) + 1, dtype=np.int64).data):
                index.write(array)
                idx_sha256.update(array)
            index.flush()
            os.fsync(index.fileno())
        self._bin.flush()
        os.fsync(self._bin.fileno())
        self._bin.close()
        os.replace(f"{self.prefix}.bin.tmp", bin_path(self.prefix))
        os.replace(f"{self.prefix}.idx.tmp", idx_path(self.prefix))
        self.sha256 = {"bin": self._bin_sha256.hexdigest(), "idx": idx_sha256.hexdigest()}

    def abort(self) -> None:
        """Drop what was written."""
        self._bin.close()
        Path(f"{self.prefix}.bin.tmp").unlink(missing_ok=True)

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()
