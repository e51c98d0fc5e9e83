"""The weights in a Hugging Face folder: one `model.safetensors`, or several and an index. No pickle is ever opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import DataError

_JSON_BYTES = 256 << 20  # an index of 100,000 tensors has 10 MB
SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; DataError says what is wrong with it."""
    try:
        if not path.exists():
            raise DataError(f"{path} is missing: is {path.parent} a Hugging Face model folder?")
        if not path.is_file() or path.stat().st_size > _JSON_BYTES:  # reading a pipe or a device would not end
            raise DataError(f"{path} is no plain file of at most {_JSON_BYTES >> 20} MiB.")
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}.") from None
    if not isinstance(plain, dict):
        raise DataError(f"{path} is no JSON object.")
    return plain


def write_json(path: Path, plain: dict[str, Any]) -> None:
    path.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class StoredWeights:
    """The tensors of a folder by their stored names; read slice by slice, so that no file is in memory whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of = self._locate()

    def names(self) -> list[str]:
        return list(self._file_of)

    def slice(self, name: str) -> Any:
        """Return a safetensors slice: `get_shape()`, `get_dtype()`, and indexing reads a part."""
        return self._file_of[name].get_slice(name)

    def _locate(self) -> dict[str, Any]:
        if (self.folder / SINGLE).is_file():
            opened = self._open(SINGLE)
            return dict.fromkeys(opened.keys(), opened)
        if not (self.folder / INDEX).is_file():
            raise DataError(
                f"{self.folder} holds neither {SINGLE} nor {INDEX}; have transformers write it with save_pretrained."
            )
        places = read_json(self.folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise DataError(f"{self.folder / INDEX} has no weight_map of names to files.")
        files = {file: self._open(file) for file in sorted(set(places.values()))}
        held = {file: set(opened.keys()) for file, opened in files.items()}
        for name, file in places.items():
            if name not in held[file]:
                raise DataError(f"{self.folder / file} holds no {name}, against what {INDEX} says.")
        return {name: files[file] for name, file in places.items()}

    def _open(self, file: str) -> Any:
        if Path(file).name != file:
            raise DataError(f"{self.folder / INDEX} names {file!r}, which is no file of this folder.")
        if not (self.folder / file).is_file():  # opening a pipe would wait for ever
            raise DataError(f"{self.folder / file} is missing, or no plain file.")
        try:
            return safe_open(self.folder / file, framework="pt", device="cpu")
        except (OSError, SafetensorError) as error:
            raise DataError(f"{self.folder / file} cannot be read: {' '.join(str(error).split())}.") from None


def write_weights(
    folder: Path, sizes: dict[str, int], make: Callable[[str], Tensor], limit: int = 5_000_000_000
) -> None:
    """Write tensors of `sizes` bytes, each from `make(name)`, in files of at most `limit` bytes where they fit.

    One file is in memory at a time.
    """
    groups = _grouped(sizes, limit)
    if len(groups) == 1:
        files = {SINGLE: groups[0]}
    else:
        files = {f"model-{n:05d}-of-{len(groups):05d}.safetensors": group for n, group in enumerate(groups, 1)}
        weight_map = {name: file for file, names in files.items() for name in names}
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})
    for file, names in files.items():
        save_file({name: make(name) for name in names}, folder / file, metadata={"format": "pt"})


def _grouped(sizes: dict[str, int], limit: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    total = 0
    for name, size in sizes.items():
        if groups[-1] and total + size > limit:
            groups.append([])
            total = 0
        groups[-1].append(name)
        total += size
    return groups
