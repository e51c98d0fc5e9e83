"""Reading: the newest checkpoint that is whole, and any box of its tensors, whatever layout wrote them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.checkpoint import folder as folders
from engine.checkpoint.boxes import Box
from engine.checkpoint.manifest import MANIFEST, MAX_BYTES, Manifest, StoredBox, StoredTensor
from engine.errors import CheckpointError


class Checkpoint:
    """A verified checkpoint. `warnings` are the lines about newer ones that are damaged."""

    def __init__(self, path: Path, manifest: Manifest, warnings: Iterable[str] = ()) -> None:
        self.path, self.warnings = path, list(warnings)
        self._manifest = manifest
        self._open: dict[str, Any] = {}

    @property
    def step(self) -> int:
        """The step after which it was saved."""
        return self._manifest.step

    @property
    def meta(self) -> dict[str, Any]:
        """What was handed to `CheckpointWriter.save` as meta."""
        return self._manifest.meta

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""
        return sorted(self._manifest.tensors)

    def global_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""
        return self._stored(name).global_shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype it is stored in."""
        return self._stored(name).dtype

    def expect(self, name: str, global_shape: Sequence[int]) -> None:
        """Raise CheckpointError unless `name` is here in this shape."""
        found = self.global_shape(name)
        if found != tuple(global_shape):
            raise CheckpointError(
                f"{self.path}: {name} is {_times(found)} there and {_times(global_shape)} here. "
                "Is it the checkpoint of another model?"
            )

    def read(self, name: str, offsets: Sequence[int], out: Tensor) -> None:
        """Fill `out` with the box of its shape at `offsets` of tensor `name`, cast to its dtype and device."""
        stored = self._stored(name)
        wanted = Box(tuple(offsets), tuple(out.shape))
        inside = len(wanted.offsets) == len(wanted.shape) == len(stored.global_shape) and all(
            low >= 0 and low + size <= end
            for low, size, end in zip(wanted.offsets, wanted.shape, stored.global_shape, strict=True)
        )
        if not inside:
            raise CheckpointError(
                f"{self.path}: {name} is {_times(stored.global_shape)}, without {_times(out.shape)} at "
                f"{tuple(offsets)}. Is it the checkpoint of another model?"
            )
        # The manifest was refused unless its boxes tile the whole tensor: what lies inside is fully covered.
        with torch.no_grad():
            for part in stored.boxes:
                common = part.box.intersect(wanted)
                if common is not None:
                    out[common.slices_in(wanted)].copy_(self._values(part, stored.dtype, common))

    def whole(self, name: str) -> Tensor:
        """Return the whole tensor, in the dtype it is stored in."""
        values = torch.empty(self.global_shape(name), dtype=self.dtype(name))
        self.read(name, (0,) * values.ndim, values)
        return values

    def verify(self, names: Iterable[str]) -> None:
        """Compare these files with the manifest; CheckpointError names the first that is not as it was written."""
        for name in names:
            file = self._manifest.files[name]
            with _open_plain(self.path / name) as opened:
                size = os.fstat(opened.fileno()).st_size
                if size != file.size:
                    raise CheckpointError(f"{name} is damaged: {size} bytes, {file.size} were written.")
                if hashlib.file_digest(opened, "sha256").hexdigest() != file.sha256:
                    raise CheckpointError(f"{name} is damaged: its sha256 does not match.")
            self._file(name)

    def files(self) -> list[str]:
        """Return the names of its shards, sorted."""
        return sorted(self._manifest.files)

    def _stored(self, name: str) -> StoredTensor:
        if name not in self._manifest.tensors:
            raise CheckpointError(f"{self.path} holds no {name}. Is it the checkpoint of another model?")
        return self._manifest.tensors[name]

    def _file(self, name: str) -> Any:
        """Return the opened shard (mapped, its header parsed, nothing in it ever executed)."""
        if name not in self._open:
            try:
                self._open[name] = safe_open(self.path / name, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{name} is no safetensors file: {_one_line(error)}.") from None
        return self._open[name]

    def _values(self, part: StoredBox, dtype: torch.dtype, common: Box) -> Tensor:
        """Return the values of `common`, a box inside a stored one."""
        try:
            if common == part.box:
                values = self._file(part.file).get_tensor(part.key)
            else:
                values = self._file(part.file).get_slice(part.key)[common.slices_in(part.box)]
        except SafetensorError as error:
            raise CheckpointError(f"{self.path / part.file} is not what {MANIFEST} says: {_one_line(error)}.") from None
        if values.dtype != dtype or tuple(values.shape) != common.shape:
            raise CheckpointError(f"{self.path / part.file} is not what {MANIFEST} says of {part.key}.")
        return values


def find_checkpoint(folder: Path, *, rank: int, world: int, agree: Callable[[bool], bool]) -> Checkpoint | None:
    """Return the newest whole checkpoint of a run, None where nothing was saved; the same on every rank.

    The files of each are verified by the ranks together. `agree` returns whether all ranks say True and is
    called equally often by all. CheckpointError when there are checkpoints and every one is damaged.
    """
    agree(True)  # rank 0 may just have tidied up the folder: look only after it did
    warnings: list[str] = []
    for step in folders.saved_steps(folder):
        path = folders.step_path(folder, step)
        checkpoint, fault = _try(path, slice(rank, None, world), step, warnings)
        if agree(fault is None) and checkpoint is not None:
            return checkpoint
        if fault is None:  # another rank found it: look through its files too, to be able to say the same
            fault = _try(path, slice(None), step)[1] or "another rank cannot read it."
        warnings.append(f"skipped the damaged checkpoint {path}: {fault}")
    if warnings:
        raise CheckpointError(f"{warnings[0]} No older one is whole either: move {folder} away to start afresh.")
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, verified by this rank alone; CheckpointError says what is wrong with it."""
    checkpoint, fault = _try(path, slice(None))
    if checkpoint is None:
        raise CheckpointError(f"the checkpoint {path} cannot be used: {fault}")
    return checkpoint


def read_manifest(path: Path) -> Manifest | None:
    """Return the manifest of a checkpoint, without a look at its other files; None where it is damaged."""
    try:
        with _open_plain(path / MANIFEST) as opened:
            return Manifest.decode(opened.read(MAX_BYTES))
    except (CheckpointError, OSError):
        return None


def _try(
    path: Path, share: slice, step: int | None = None, warnings: Sequence[str] = ()
) -> tuple[Checkpoint | None, str | None]:
    """Verify the manifest and a share of the files; return the checkpoint, or what is wrong with it."""
    try:
        if step is not None and path.is_symlink():  # a path the user wrote may be one
            raise CheckpointError("it is a symbolic link.")
        with _open_plain(path / MANIFEST) as opened:
            checkpoint = Checkpoint(path, Manifest.decode(opened.read(MAX_BYTES)), warnings)
        if step not in (None, checkpoint.step):
            raise CheckpointError(f"{MANIFEST} is that of step {checkpoint.step}.")
        checkpoint.verify(checkpoint.files()[share])
    except CheckpointError as error:
        return None, str(error)
    except OSError as error:
        return None, f"it cannot be read: {_one_line(error)}."
    return checkpoint, None


def _open_plain(path: Path) -> Any:
    """Open a regular file, no link or device, to read its bytes; CheckpointError when there is none."""
    try:
        opened = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    except FileNotFoundError:
        raise CheckpointError(f"{path.name} is missing.") from None
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise CheckpointError(f"{path.name} is no plain file.")
    return opened


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
