"""The disk of the run folder: room for the checkpoints that will be kept, and how fast all ranks write at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from engine.checkpoint.folder import largest, saved_steps
from engine.config import Config
from engine.device import DTYPES
from engine.preflight.finding import FAULT, OK, WARNING, Finding, size
from engine.preflight.team import Team

_SAMPLE = 16 << 20  # bytes that each rank writes
_SLOW_S = 600.0  # a checkpoint that takes longer than this is worth a word


def checkpoint_bytes(config: Config, parameters: int) -> int:
    """Return the size of a checkpoint: masters and both moments of `parameters`, in fp32 or, for fp64 runs, fp64."""
    return 3 * parameters * max(4, DTYPES[config.precision.dtype].itemsize)


def check_disk(team: Team, config: Config, path: Path, parameters: int) -> list[Finding]:
    """Look at the room in the run folder `path`, which exists, and write a sample to it from all ranks."""
    each = checkpoint_bytes(config, parameters)
    checkpoints = path / "checkpoints"
    held = largest(checkpoints) * len(saved_steps(checkpoints))
    free = shutil.disk_usage(path).free
    free, held = team.gather([free, held])[0]
    found = [judge_room(path, free, held, each, config.checkpoint.keep_last)]
    sample = max(1 << 16, min(_SAMPLE, max(1 << 16, each // team.world), free // (2 * team.world)))
    took = _write(path / f".preflight-disk-{team.rank}", sample)
    speeds = team.gather(took)
    wrong = next((text for text in speeds if isinstance(text, str)), None)
    if wrong is not None:
        return [*found, Finding(FAULT, "disk", f"{path} cannot be written: {wrong}; make room, or write run.root")]
    return [*found, judge_speed(sample * team.world / max(*speeds, 1e-9), each)]


def judge_room(path: Path, free: int, held: int, each: int, keep_last: int) -> Finding:
    """Judge `free` bytes, besides `held` in checkpoints, for `keep_last` of `each` bytes and one being written."""
    need = (keep_last + 1) * each
    if free + held < need:
        return Finding(
            FAULT, "disk", f"{size(free)} are free in {path}, but {keep_last + 1} checkpoints of {size(each)} (the "
            f"last {keep_last} and one being written) need {size(need)}; make room, or write another run.root",
        )  # fmt: skip
    return Finding(OK, "disk", f"{size(free)} free, checkpoints of {size(each)} each")


def judge_speed(rate: float, each: int) -> Finding:
    """Judge how fast all ranks together write, in bytes/s, for checkpoints of `each` bytes."""
    text = f"all ranks write {rate / 1e6:,.0f} MB/s, a checkpoint in {each / rate:.2g} s"
    if each / rate > _SLOW_S:
        return Finding(WARNING, "disk", f"{text}; write another run.root, or a larger checkpoint.interval")
    return Finding(OK, "disk", text)


def _write(file: Path, nbytes: int) -> float | str:
    """Return the seconds that it takes to bring `nbytes` to the disk, or why that fails."""
    block = os.urandom(1 << 16)  # not zeros, which some disks do not store
    began = time.perf_counter()
    try:
        with open(file, "wb", buffering=0) as out:
            for _ in range(max(1, nbytes // len(block))):
                out.write(block)
            os.fsync(out.fileno())
        return time.perf_counter() - began
    except OSError as error:
        return error.strerror or str(error)
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
