"""The manifest: what a checkpoint holds and where, with the hash of every file and of itself.

It is JSON, parsed strictly, because a checkpoint may come from anywhere: nothing in it can name a file outside
its own folder, and no shape in it can claim more than the files hold. The format is
`{"sha256":"<of the body's bytes>","manifest":<body>}`, so that every bit of the file is checked.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from engine.checkpoint.boxes import Box, are_disjoint
from engine.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT = 1
MAX_BYTES = 1 << 30
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
                  torch.int16, torch.int8, torch.uint8, torch.bool)
}  # fmt: skip
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}\.safetensors")
_HASH = re.compile(r"[0-9a-f]{64}")
_PREFIX, _MIDDLE, _SUFFIX = b'{"sha256":"', b'","manifest":', b"}\n"
_BODY_AT = len(_PREFIX) + 64 + len(_MIDDLE)


@dataclass(frozen=True)
class StoredFile:
    """Size in bytes and sha256 (hex) of a shard."""

    size: int
    sha256: str


@dataclass(frozen=True)
class StoredBox:
    """A box of a global tensor, stored under `key` in the shard `file`."""

    file: str
    key: str
    box: Box


@dataclass(frozen=True)
class StoredTensor:
    """A global tensor; every element lies in exactly one of `boxes`."""

    global_shape: tuple[int, ...]
    dtype: torch.dtype
    boxes: tuple[StoredBox, ...]

    def joined(self, boxes: tuple[StoredBox, ...]) -> StoredTensor:
        """Return the same tensor with more boxes."""
        return StoredTensor(self.global_shape, self.dtype, self.boxes + boxes)


@dataclass(frozen=True)
class Manifest:
    """All there is to know of a checkpoint but its tensors' values. `meta` is any JSON object."""

    step: int
    meta: dict[str, Any]
    tensors: dict[str, StoredTensor]
    files: dict[str, StoredFile]

    def encode(self) -> bytes:
        """Return the bytes of the manifest file; CheckpointError if they would not be read back."""
        body = json.dumps(self._plain(), separators=(",", ":")).encode()
        digest = hashlib.sha256(body).hexdigest().encode()
        encoded = _PREFIX + digest + _MIDDLE + body + _SUFFIX
        Manifest.decode(encoded)
        return encoded

    @staticmethod
    def decode(encoded: bytes) -> Manifest:
        """Return the manifest in `encoded`; CheckpointError names what is wrong with it."""
        body = encoded[_BODY_AT : -len(_SUFFIX)]
        digest = hashlib.sha256(body).hexdigest().encode()
        if encoded != _PREFIX + digest + _MIDDLE + body + _SUFFIX:
            raise CheckpointError(f"{MANIFEST} is damaged: its sha256 does not match its text.")
        try:
            return _parse(json.loads(body, object_pairs_hook=_distinct))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{MANIFEST} is not JSON: {' '.join(str(error).split())}") from None

    def _plain(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "step": self.step,
            "meta": self.meta,
            "tensors": {
                name: {
                    "global_shape": stored.global_shape,
                    "dtype": str(stored.dtype).removeprefix("torch."),
                    "boxes": [
                        {"file": part.file, "key": part.key, "offsets": part.box.offsets, "shape": part.box.shape}
                        for part in stored.boxes
                    ],
                }
                for name, stored in self.tensors.items()
            },
            "files": {name: {"size": file.size, "sha256": file.sha256} for name, file in self.files.items()},
        }


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; of equal keys another reader may believe the other one."""
    plain = dict(pairs)
    if len(plain) < len(pairs):
        _refuse("a key appears twice in one object")
    return plain


def _refuse(what: str) -> NoReturn:
    raise CheckpointError(f"{MANIFEST} is refused: {what[:300]}.")


def _parse(plain: Any) -> Manifest:
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        found = plain.get("format") if isinstance(plain, dict) else None
        _refuse(f"format {found!r} is unknown, this version reads format {FORMAT}")
    _keys(plain, {"format", "step", "meta", "tensors", "files"}, "the manifest")
    for key in ("meta", "tensors", "files"):
        if not isinstance(plain[key], dict):
            _refuse(f"{key} is not an object")
    files = {name: _parse_file(name, value) for name, value in plain["files"].items()}
    tensors = {name: _parse_tensor(name, value, files) for name, value in plain["tensors"].items()}
    return Manifest(_count(plain["step"], "step"), plain["meta"], tensors, files)


def _parse_file(name: str, plain: Any) -> StoredFile:
    if not _FILE_NAME.fullmatch(name):
        _refuse(f"{name!r} is no name of a shard")
    _keys(plain, {"size", "sha256"}, f"file {name}")
    if not isinstance(plain["sha256"], str) or not _HASH.fullmatch(plain["sha256"]):
        _refuse(f"file {name} has no sha256")
    return StoredFile(_count(plain["size"], f"size of {name}"), plain["sha256"])


def _parse_tensor(name: str, plain: Any, files: dict[str, StoredFile]) -> StoredTensor:
    what = f"tensor {name!r}"
    _keys(plain, {"global_shape", "dtype", "boxes"}, what)
    shape = _counts(plain["global_shape"], f"global_shape of {what}")
    if not isinstance(plain["dtype"], str) or plain["dtype"] not in DTYPES:
        _refuse(f"{what} has the unknown dtype {plain['dtype']!r}")
    dtype = DTYPES[plain["dtype"]]
    if not isinstance(plain["boxes"], list):
        _refuse(f"boxes of {what} is not a list")
    boxes = tuple(_parse_box(item, what, shape, dtype, files) for item in plain["boxes"])
    found, wanted = sum(part.box.numel for part in boxes), math.prod(shape)
    if found != wanted or not are_disjoint([part.box for part in boxes]):
        _refuse(f"the boxes of {what} hold {found} elements, and not each of its {wanted} exactly once")
    return StoredTensor(shape, dtype, boxes)


def _parse_box(
    plain: Any, what: str, shape: tuple[int, ...], dtype: torch.dtype, files: dict[str, StoredFile]
) -> StoredBox:
    _keys(plain, {"file", "key", "offsets", "shape"}, f"a box of {what}")
    file, key = plain["file"], plain["key"]
    if not isinstance(file, str) or file not in files or not isinstance(key, str):
        _refuse(f"a box of {what} lies in the unknown file {file!r}")
    box = Box(_counts(plain["offsets"], f"offsets of {what}"), _counts(plain["shape"], f"shape of {what}"))
    if not len(box.offsets) == len(box.shape) == len(shape) or any(
        low + size > end for low, size, end in zip(box.offsets, box.shape, shape, strict=True)
    ):
        _refuse(f"a box of {what} lies outside its global shape {shape}")
    if box.numel == 0 or box.numel * dtype.itemsize > files[file].size:
        _refuse(f"a box of {what} holds {box.numel} elements, file {file} only {files[file].size} bytes")
    return StoredBox(file, key, box)


def _keys(plain: Any, wanted: set[str], what: str) -> None:
    if not isinstance(plain, dict) or plain.keys() != wanted:
        _refuse(f"{what} does not have exactly the keys {', '.join(sorted(wanted))}")


def _count(plain: Any, what: str) -> int:
    if type(plain) is not int or not 0 <= plain < 1 << 63:
        _refuse(f"{what} is not a count")
    return plain


def _counts(plain: Any, what: str) -> tuple[int, ...]:
    if not isinstance(plain, list) or len(plain) > 32:
        _refuse(f"{what} is not a short list")
    return tuple(_count(item, what) for item in plain)
