"""The folder of a run's checkpoints: how they are named, committed, replaced, pruned and tidied.

`step_00000100` is whole, `step_00000100.tmp` is being written, `step_00000100.replaced` is an older one of the
same step that is about to go, `step_00000100.abandoned` is of steps that the run went back from. Only renames turn
one into another, so a crash at any moment leaves either the old checkpoint or the new one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from engine.checkpoint.manifest import MANIFEST, Manifest
from engine.checkpoint.shard import Shard, fsync_folder, write_durably
from engine.errors import CheckpointError
from engine.flight import phases
from engine.flight.recorder import FLIGHT

_WHOLE = re.compile(r"step_(\d{8,18})")
_TMP, _REPLACED, _ABANDONED = ".tmp", ".replaced", ".abandoned"


def step_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint of `step` lies once it is whole."""
    return folder / f"step_{step:08d}"


def aside_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint of `step` is while it is being written."""
    return folder / f"step_{step:08d}{_TMP}"


def shard_name(rank: int) -> str:
    """Return the file name of a rank's part."""
    return f"shard-{rank:05d}.safetensors"


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in `folder`, newest first; none where there is no folder."""
    if not os.path.isdir(folder):  # also where no such name can be, which Path.is_dir answers with an error
        return []
    found = [_WHOLE.fullmatch(path.name) for path in folder.iterdir() if path.is_dir()]
    return sorted((int(match[1]) for match in found if match), reverse=True)


def largest(folder: Path) -> int:
    """Return the bytes of the largest checkpoint in `folder`; 0 where there is none."""
    paths = [step_path(folder, step) for step in saved_steps(folder)]
    return max((sum(file.lstat().st_size for file in path.iterdir()) for path in paths), default=0)


def sweep(folder: Path) -> None:
    """Tidy up after a crash: drop what was being written, bring back what was about to be replaced."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        stem = path.name.removesuffix(path.suffix)
        if path.suffix not in (_TMP, _REPLACED) or not _WHOLE.fullmatch(stem):
            continue
        whole = path.with_name(stem)
        if path.is_symlink():  # never ours: what it leads to would be filled, and emptied of all other files
            path.unlink()
        elif path.suffix == _REPLACED and not whole.exists():
            path.rename(whole)
        else:
            shutil.rmtree(path, ignore_errors=True)


def commit(folder: Path, manifest: Manifest) -> Path:
    """Make the written shards a checkpoint, in place of an older one of the same step; return its path."""
    FLIGHT.background(phases.SAVE_MANIFEST, manifest.step)
    aside, whole = aside_path(folder, manifest.step), step_path(folder, manifest.step)
    for path in aside.iterdir():
        if path.name not in manifest.files:
            path.unlink()
    for name, file in manifest.files.items():
        if not (aside / name).is_file() or (aside / name).stat().st_size != file.size:
            raise CheckpointError(f"{aside / name} is not to be seen from rank 0: do all ranks share this folder?")
    write_durably(aside / MANIFEST, manifest.encode())
    FLIGHT.background(phases.SAVE_RENAME, manifest.step)
    replaced = whole.with_name(whole.name + _REPLACED)
    if whole.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        whole.rename(replaced)
        FLIGHT.background(phases.SAVE_REPLACED, manifest.step)
    try:
        aside.rename(whole)
    except OSError:
        if replaced.exists():
            replaced.rename(whole)
        raise
    fsync_folder(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return whole


def abandon(folder: Path, after: int) -> list[int]:
    """Set aside the checkpoints of steps later than `after`, which nobody continues from; return their steps.

    They stay until the run has saved a later step again (`prune`). Once returned, this outlives a crash.
    """
    steps = [step for step in saved_steps(folder) if step > after]
    for step in steps:
        whole = step_path(folder, step)
        aside = whole.with_name(whole.name + _ABANDONED)
        shutil.rmtree(aside, ignore_errors=True)
        whole.rename(aside)
    if steps:
        fsync_folder(folder)
    return steps


def _drop_abandoned(folder: Path, newest: int) -> None:
    for path in folder.glob(f"step_*{_ABANDONED}"):
        match = _WHOLE.fullmatch(path.name.removesuffix(_ABANDONED))
        if match and int(match[1]) <= newest:
            shutil.rmtree(path)


def prune(folder: Path, newest: int, keep_last: int, keep_every: int) -> None:
    """Remove checkpoints of steps before `newest`, which is known to be good, that need not be kept.

    Steps after `newest` are of a run that was continued from before them, damaged most likely: they are neither
    counted as good ones nor touched.
    """
    _drop_abandoned(folder, newest)
    older = [step for step in saved_steps(folder) if step < newest]
    for step in older[max(keep_last, 1) - 1 :]:
        if not keep_every or step % keep_every:
            path = step_path(folder, step)
            # Under another name first, so that a half-removed folder does not look like a damaged checkpoint.
            doomed = aside_path(folder, step)
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            if doomed.is_symlink():
                doomed.unlink()
            else:
                shutil.rmtree(doomed)


def merge(step: int, meta: dict[str, object], shards: Iterable[Shard]) -> Manifest:
    """Return the manifest of all ranks' shards; CheckpointError where they contradict each other."""
    manifest = Manifest(step, meta, {}, {})
    for shard in shards:
        if shard.file is not None:
            manifest.files[shard.name] = shard.file
        for name, stored in shard.tensors.items():
            known = manifest.tensors.get(name)
            if known is None:
                manifest.tensors[name] = stored
            elif (known.global_shape, known.dtype) != (stored.global_shape, stored.dtype):
                raise CheckpointError(f"ranks hand over {name} with different global shapes or dtypes.")
            else:
                manifest.tensors[name] = known.joined(stored.boxes)
    return manifest
