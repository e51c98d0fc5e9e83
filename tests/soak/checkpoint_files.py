"""Checkpoints whose files are not what was written, beside what other formats say of the same damage."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException

from engine.checkpoint.entry import Entry
from engine.checkpoint.manifest import MANIFEST
from engine.checkpoint.reader import open_checkpoint
from tests.checkpoint.helpers import find, in_threads, make_writer, read_all
from tests.checkpoint.test_manifest import HOSTILE, Bomb, seal
from tests.soak.refusal import refusal

FLIPS, RANKS, SEED = 64, 4, 2026
ROWS, COLUMNS = 256, 192
PART = ROWS // RANKS


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    return {f"layers.{n}.weight": torch.randn(ROWS, COLUMNS, generator=generator) for n in range(8)}


def two_checkpoints(folder: Path) -> Path:
    """Save steps 1 and 2 from RANKS ranks; return the folder of step 2."""
    store = dist.HashStore()

    def rank(number: int) -> None:
        writer = make_writer(folder, rank=number, world=RANKS, store=store)
        for step in (1, 2):
            held = [
                Entry(name, (ROWS, COLUMNS), (number * PART, 0), tensor[number * PART : (number + 1) * PART] * step)
                for name, tensor in weights().items()
            ]
            writer.save(step, held, {"step": step})
        writer.close()

    in_threads(RANKS, rank)
    return folder / "step_00000002"


def expect_fallback(folder: Path, damaged: Path) -> None:
    """The file is named by whoever opens its checkpoint, and a run goes on from the one before, saying so."""
    found = find(folder)
    assert found is not None
    assert found.step == 1
    assert torch.equal(read_all(found)["layers.3.weight"], weights()["layers.3.weight"])
    (warning,) = found.warnings
    assert damaged.name in warning
    assert damaged.name in refusal(open_checkpoint, damaged.parent)


def flipped(path: Path, chance: random.Random) -> bytes:
    """Flip a random bit of a file; return what it held."""
    content = path.read_bytes()
    changed, bit = bytearray(content), chance.randrange(8 * len(content))
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    return content


def flips_of_ours(folder: Path) -> str:
    newest, chance = two_checkpoints(folder), random.Random(SEED)
    files = sorted(newest.iterdir())
    assert len(files) == RANKS + 1
    for trial in range(FLIPS):
        path = files[trial % len(files)]
        content = flipped(path, chance)
        expect_fallback(folder, path)
        path.write_bytes(content)
    assert find(folder).step == 2  # type: ignore[union-attr]
    return f"{FLIPS} of {FLIPS} found, named, and the checkpoint before taken ({len(files)} files)"


def _torch_save(path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, path / "state.pt")


def _torch_load(path: Path) -> dict[str, Tensor]:
    return torch.load(path / "state.pt", weights_only=True)


def _dcp_save(path: Path, state: dict[str, Tensor]) -> None:
    dcp.save(state, checkpoint_id=path, no_dist=True)


def _dcp_load(path: Path) -> dict[str, Tensor]:
    state = {name: torch.empty_like(tensor) for name, tensor in weights().items()}
    dcp.load(state, checkpoint_id=path, no_dist=True)
    return state


def _safetensors_save(path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, path / "state.safetensors")


def _safetensors_load(path: Path) -> dict[str, Tensor]:
    return load_file(path / "state.safetensors")


def flips_of(save: Callable[[Path, dict[str, Tensor]], None], load: Callable[[Path], dict[str, Tensor]]) -> Any:
    """Return the case that counts what another format says of FLIPS random bits, spread over its files by size."""

    def case(folder: Path) -> str:
        save(folder, weights())
        chance, counts = random.Random(SEED), {"refused": 0, "wrong": 0, "right": 0}
        files = sorted(path for path in folder.iterdir() if path.is_file())
        sizes = [path.stat().st_size for path in files]
        for _ in range(FLIPS):
            (path,) = chance.choices(files, sizes)
            content = flipped(path, chance)
            try:
                state = load(folder)
            except (Exception, CheckpointException):  # the latter is none
                counts["refused"] += 1
            else:
                same = state.keys() == weights().keys() and all(
                    torch.equal(state[name], tensor) for name, tensor in weights().items()
                )
                counts["right" if same else "wrong"] += 1
            path.write_bytes(content)
        return (
            f"{counts['wrong']} of {FLIPS} loaded silently with wrong values, {counts['refused']} refused, "
            f"{counts['right']} without effect on values"
        )

    return case


def lost_and_cut(folder: Path) -> str:
    newest, done = two_checkpoints(folder), 0
    for path in sorted(newest.iterdir()):
        content = path.read_bytes()
        for damage in ("deleted", "empty", "half", "one byte less", "one byte more", "a folder", "a link", "a pipe"):
            path.unlink()
            if damage == "a folder":
                path.mkdir()
            elif damage == "a link":
                (folder / "elsewhere").write_bytes(content)
                path.symlink_to(folder / "elsewhere")
            elif damage == "a pipe":
                os.mkfifo(path)
            elif damage != "deleted":
                size = {"empty": 0, "half": len(content) // 2, "one byte less": len(content) - 1}
                path.write_bytes(content[: size.get(damage, len(content))] + b"\0" * (damage == "one byte more"))
            expect_fallback(folder, path)
            done += 1
            if damage == "a folder":
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
            path.write_bytes(content)
    for step in (1, 2):
        (folder / f"step_0000000{step}" / MANIFEST).unlink()
    assert "start afresh" in refusal(find, folder)
    return f"{done} of {done} named, the checkpoint before taken; both damaged: refused in one line"


def hostile_manifests(folder: Path) -> str:
    newest = two_checkpoints(folder / "run")
    shard = sorted(newest.glob("*.safetensors"))[0]
    body = json.loads((newest / MANIFEST).read_bytes())["manifest"]
    text = json.dumps(body).replace(shard.name, "shard-00000.safetensors").replace("layers.0.weight", "a")
    for change in HOSTILE.values():
        plain = json.loads(text)
        change(plain)
        refused(newest, MANIFEST, seal(json.dumps(plain).encode()))
    for raw in (pickle.dumps(Bomb(str(folder / "owned"))), seal(b"[" * 1_000_000), seal(b'{"format":1,"format":1}')):
        refused(newest, MANIFEST, raw)
    assert not (folder / "owned").exists()
    return f"{len(HOSTILE) + 3} manifests refused in one line, nothing was run"


def _header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def hostile_shards(folder: Path) -> str:
    newest = two_checkpoints(folder / "run")
    tensor = '{"dtype":"F32","shape":%s,"data_offsets":%s}'
    shards = {
        "a pickle": pickle.dumps(Bomb(str(folder / "owned"))),
        "header of 4 EiB": struct.pack("<Q", 1 << 62) + b"{}",
        "header of 99 MB": _header(b"[" * 99_000_000),
        "overlap": _header(f'{{"a":{tensor % ([2], [0, 8])},"b":{tensor % ([2], [4, 12])}}}'.encode(), b"x" * 12),
        "outside the file": _header(f'{{"a":{tensor % ([2], [0, 800])}}}'.encode(), b"x" * 8),
        "shape that overflows": _header(f'{{"a":{tensor % ([1 << 62, 4], [0, 8])}}}'.encode(), b"x" * 8),
        "negative shape": _header(f'{{"a":{tensor % ([-2], [0, 8])}}}'.encode(), b"x" * 8),
        "a key twice": _header(f'{{"a":{tensor % ([1], [0, 4])},"a":{tensor % ([1], [4, 8])}}}'.encode(), b"x" * 8),
        "not a number": _header(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', b"x" * 8),
    }
    for content in shards.values():
        plain = json.loads((newest / MANIFEST).read_bytes())["manifest"]
        shard = sorted(plain["files"])[0]
        plain["files"][shard] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for stored in plain["tensors"].values():
            stored["boxes"] = [box for box in stored["boxes"] if box["file"] != shard]
            stored["global_shape"][0] -= PART
            for box in stored["boxes"]:
                box["offsets"][0] -= PART
        copy = folder / "copy"
        shutil.copytree(newest, copy)
        (copy / MANIFEST).write_bytes(seal(json.dumps(plain).encode()))
        refused(copy, shard, content)
        shutil.rmtree(copy)
    assert not (folder / "owned").exists()
    return f"{len(shards)} shards under right sums refused in one line, nothing was run"


def refused(checkpoint: Path, file: str, content: bytes) -> None:
    """Put `content` in the place of a file, and expect one line about it."""
    held = (checkpoint / file).read_bytes()
    (checkpoint / file).write_bytes(content)
    assert file in refusal(open_checkpoint, checkpoint)
    (checkpoint / file).write_bytes(held)


CASES = [
    ("F5", "bit flips, ours", flips_of_ours),
    ("F5", "bit flips, torch.save", flips_of(_torch_save, _torch_load)),
    ("F5", "bit flips, torch DCP", flips_of(_dcp_save, _dcp_load)),
    ("F5", "bit flips, safetensors alone", flips_of(_safetensors_save, _safetensors_load)),
    ("F4", "files lost, cut, replaced", lost_and_cut),
    ("F20", "hostile manifests", hostile_manifests),
    ("F20", "hostile shards", hostile_shards),
]
