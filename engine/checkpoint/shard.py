"""One rank's part of a checkpoint: copied into host memory that is reused, then written as a safetensors file.

The host buffer is laid out as the file's data section, so that writing is one header and one run of bytes, and
the sha256 is that of the bytes meant to be written: a fault on their way to the disk is found when reading.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.boxes import Box
from engine.checkpoint.entry import Entry
from engine.checkpoint.manifest import DTYPES, StoredBox, StoredFile, StoredTensor
from engine.errors import CheckpointError

_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_CHUNK = 8 << 20


@dataclass(frozen=True)
class Shard:
    """What a written file holds; no `file` where a rank has nothing to save."""

    name: str
    file: StoredFile | None
    tensors: dict[str, StoredTensor]

    def to_plain(self) -> dict[str, Any]:
        """Return this as JSON values, to be sent to the rank that writes the manifest."""
        tensors = [
            [name, stored.global_shape, str(stored.dtype).removeprefix("torch."),
             [[part.key, part.box.offsets, part.box.shape] for part in stored.boxes]]
            for name, stored in self.tensors.items()
        ]  # fmt: skip
        return {"name": self.name, "file": self.file and [self.file.size, self.file.sha256], "tensors": tensors}

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> Shard:
        """Return what `to_plain` was given."""
        file = plain["name"]
        tensors = {
            name: StoredTensor(
                tuple(shape),
                DTYPES[dtype],
                tuple(StoredBox(file, key, Box(tuple(offsets), tuple(size))) for key, offsets, size in boxes),
            )
            for name, shape, dtype, boxes in plain["tensors"]
        }
        return Shard(file, StoredFile(*plain["file"]) if plain["file"] else None, tensors)


def _joined(tensors: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the tensors, those that follow one another in memory as one: few large copies are faster than many."""
    begin = 0
    while begin < len(tensors):
        first, end = tensors[begin], begin + 1
        place = int(first.storage_offset()) + first.numel()
        while first.is_contiguous() and end < len(tensors) and _follows(tensors[end], first, place):
            place += tensors[end].numel()
            end += 1
        start = int(first.storage_offset())
        yield first if end == begin + 1 else first.as_strided((place - start,), (1,), start)
        begin = end


def _follows(tensor: torch.Tensor, first: torch.Tensor, place: int) -> bool:
    """Say whether `tensor` begins at element `place` of the storage of `first`."""
    return (
        tensor.dtype == first.dtype
        and tensor.is_contiguous()
        and tensor.storage_offset() == place
        and tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
    )


class Snapshot:
    """A copy of the entries of one save, `size` bytes, in host memory that the next save uses again."""

    def __init__(self) -> None:
        self.size = 0
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._entries: list[Entry] = []

    def take(self, entries: Iterable[Entry]) -> None:
        """Copy the values of `entries`, which may change afterwards. All else about them is left for `write`."""
        # Wider types first: then every tensor starts at a multiple of its element size without padding.
        self._entries = sorted(entries, key=lambda entry: -entry.tensor.dtype.itemsize)
        tensors = [entry.tensor.detach() for entry in self._entries if entry.tensor.numel() > 0]
        self.size = sum(tensor.nbytes for tensor in tensors)
        self._reserve(self.size, any(tensor.is_cuda for tensor in tensors))
        self._copy(tensors)

    def _copy(self, tensors: list[torch.Tensor]) -> None:
        """Fill the buffer with `tensors`, one after the other."""
        at = 0
        for run in _joined(tensors):
            stop = at + run.nbytes
            self._buffer[at:stop].view(run.dtype).view(run.shape).copy_(run)
            at = stop

    def write(self, path: Path) -> Shard:
        """Write the copy to a new file at `path`, down to the disk; a file that fails is taken away again.

        Raises CheckpointError for entries that contradict each other or cannot be held.
        """
        plain, tensors, size = self._describe(path.name)
        if size == 0:
            return Shard(path.name, None, tensors)
        path.unlink(missing_ok=True)
        header = _encode_header(plain)
        try:
            digest = _write_new(path, [memoryview(header), self._buffer[:size].numpy().data])
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return Shard(path.name, StoredFile(len(header) + size, digest), tensors)

    def _describe(self, file: str) -> tuple[dict[str, Any], dict[str, StoredTensor], int]:
        """Return the header of `file`, what the shard says of its tensors, and the bytes of their values."""
        header: dict[str, Any] = {}
        tensors: dict[str, StoredTensor] = {}
        at = 0
        for entry in self._entries:
            key = f"{entry.name}@{','.join(map(str, entry.offsets))}"
            tensors[entry.name] = _with_box(tensors.get(entry.name), entry, file, key)
            tensor = entry.tensor
            if tensor.numel() == 0:
                continue
            if key in header:
                raise CheckpointError(f"{entry.name} is handed over twice at offsets {entry.offsets}.")
            stop = at + tensor.nbytes
            header[key] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, stop]}
            at = stop
        self._entries = []  # their tensors may be freed
        return header, tensors, at

    def _reserve(self, size: int, is_cuda: bool) -> None:
        if self._buffer.numel() < size:
            self._buffer = torch.empty(0, dtype=torch.uint8)  # free the smaller one first
            self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=is_cuda)


def _with_box(known: StoredTensor | None, entry: Entry, file: str, key: str) -> StoredTensor:
    """Return what is known of a tensor with one more box; CheckpointError where the entries contradict each other."""
    if entry.tensor.dtype not in _CODES:
        raise CheckpointError(f"{entry.name} is {entry.tensor.dtype}, which checkpoints do not hold.")
    shape = tuple(entry.global_shape)
    if known is None:
        known = StoredTensor(shape, entry.tensor.dtype, ())
    if (known.global_shape, known.dtype) != (shape, entry.tensor.dtype):
        raise CheckpointError(f"{entry.name} is handed over with two global shapes or dtypes.")
    part = StoredBox(file, key, Box(tuple(entry.offsets), tuple(entry.tensor.shape)))
    return StoredTensor(shape, known.dtype, (*known.boxes, part) if part.box.numel else known.boxes)


def write_durably(path: Path, data: bytes) -> None:
    """Put `data` at `path` whole or not at all, on the disk when this returns."""
    aside = path.with_name(path.name + ".aside")
    aside.unlink(missing_ok=True)
    _write_new(aside, [memoryview(data)])
    aside.rename(path)
    fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encode_header(tensors: dict[str, Any]) -> bytes:
    text = json.dumps(tensors, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_new(path: Path, parts: list[memoryview]) -> str:
    """Write the parts to a file that must not exist, fsync it, and return their sha256."""
    sha256 = hashlib.sha256()
    with open(path, "xb", buffering=0) as file:
        for part in parts:
            for start in range(0, len(part), _CHUNK):
                chunk = part[start : start + _CHUNK]
                sha256.update(chunk)
                while len(chunk):
                    chunk = chunk[file.write(chunk) :]
        os.fsync(file.fileno())
    return sha256.hexdigest()
