"""A manifest from anywhere: read back as written, or refused with one line."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint.manifest import Manifest
from engine.checkpoint.reader import open_checkpoint
from engine.errors import CheckpointError
from tests.checkpoint.helpers import read_all, save, whole

SHARD = "shard-00000.safetensors"


def seal(body: bytes) -> bytes:
    """Return a manifest file with a right hash, as an attacker writes it."""
    return b'{"sha256":"%s","manifest":%s}\n' % (hashlib.sha256(body).hexdigest().encode(), body)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint of two tensors."""
    result = save(
        tmp_path / "run", 3, whole(a=torch.arange(12.0).view(3, 4), b=torch.tensor(1.0)), {"x": [1, "é", None]}
    )
    assert result.ok
    return result.path


def body_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_bytes())["manifest"]


def test_it_is_json_and_reads_back_as_written(path: Path) -> None:
    encoded = (path / "manifest.json").read_bytes()
    manifest = Manifest.decode(encoded)
    assert manifest.encode() == encoded
    assert manifest.meta == {"x": [1, "é", None]}
    assert manifest.files[SHARD].sha256 == hashlib.sha256((path / SHARD).read_bytes()).hexdigest()


def renamed_file(name: str) -> Callable[[dict[str, Any]], None]:
    def change(body: dict[str, Any]) -> None:
        body["files"][name] = body["files"].pop(SHARD)
        for tensor in body["tensors"].values():
            for box in tensor["boxes"]:
                box["file"] = name

    return change


def in_box(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["tensors"]["a"]["boxes"][0].update(values)


def in_tensor(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["tensors"]["a"].update(values)


def absurd(body: dict[str, Any]) -> None:
    body["tensors"]["a"]["global_shape"] = body["tensors"]["a"]["boxes"][0]["shape"] = [1 << 40, 1 << 20]


def twice(body: dict[str, Any]) -> None:
    """Cover a 6 x 4 tensor by the same half twice."""
    body["tensors"]["a"]["global_shape"] = [6, 4]
    body["tensors"]["a"]["boxes"] *= 2


HOSTILE: dict[str, Callable[[dict[str, Any]], None]] = {
    "parent": renamed_file("../shard.safetensors"),
    "absolute": renamed_file("/etc/shard.safetensors"),
    "dots": renamed_file(".."),
    "subfolder": renamed_file("a/b.safetensors"),
    "newline": renamed_file("shard.safetensors\n"),
    "not a shard": renamed_file("manifest.json"),
    "absurd shape": absurd,
    "global shape without values": in_tensor(global_shape=[1 << 60, 4]),
    "negative size": in_box(shape=[-3, -4]),
    "float size": in_box(shape=[3.0, 4]),
    "bool size": in_box(offsets=[False, 0]),
    "outside": in_box(offsets=[1, 0]),
    "other rank": in_box(offsets=[0], shape=[12]),
    "too many dimensions": in_tensor(global_shape=[1] * 33),
    "covered twice": twice,
    "uncovered": in_tensor(boxes=[]),
    "dtype": in_tensor(dtype="object"),
    "unhashable dtype": in_tensor(dtype=["float32"]),
    "unknown file": in_box(file="other.safetensors"),
    "unhashable file": in_box(file=[SHARD]),
    "unknown key": lambda body: body.update(more=1),
    "missing key": lambda body: body.pop("tensors"),
    "format": lambda body: body.update(format=2),
    "step": lambda body: body.update(step=-1),
    "meta": lambda body: body.update(meta=[]),
    "size": lambda body: body["files"][SHARD].update(size="96"),
    "hash": lambda body: body["files"][SHARD].update(sha256="0"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_manifests_are_refused_in_one_line(path: Path, name: str) -> None:
    body = body_of(path)
    before = json.dumps(body)
    HOSTILE[name](body)
    assert json.dumps(body) != before
    (path / "manifest.json").write_bytes(seal(json.dumps(body).encode()))
    with pytest.raises(CheckpointError, match=r"manifest.json is refused") as caught:
        open_checkpoint(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"3", b"nonsense", b"[" * 100_000, b"\xff\xfe", b"9" * 5000, b'{"format":1}', b'{"format":[]}',
             b'{"format":NaN}', b'{"format":1,"format":1}']
)  # fmt: skip
def test_text_that_is_no_manifest_is_refused(body: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"manifest.json is"):
        Manifest.decode(seal(body))


def test_a_manifest_never_claims_what_the_shard_does_not_hold(path: Path) -> None:
    for change in (in_box(key="nothing"), in_tensor(dtype="int32"), in_box(key="b@")):
        body = body_of(path)
        change(body)
        (path / "manifest.json").write_bytes(seal(json.dumps(body).encode()))
        with pytest.raises(CheckpointError, match=r"is not what manifest.json says"):
            read_all(open_checkpoint(path))


class Bomb:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.target,)


def test_a_pickle_in_place_of_a_shard_is_never_run(path: Path, tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(str(tmp_path / "owned"))) + b"\0" * 64
    body = body_of(path)
    body["files"][SHARD] = {"size": len(bomb), "sha256": hashlib.sha256(bomb).hexdigest()}
    (path / "manifest.json").write_bytes(seal(json.dumps(body).encode()))
    (path / SHARD).write_bytes(bomb)
    with pytest.raises(CheckpointError, match="no safetensors file"):
        open_checkpoint(path)
    assert not (tmp_path / "owned").exists()
    pickle.loads(bomb)
    assert (tmp_path / "owned").exists()  # it would have gone off


def test_nothing_of_ours_can_load_a_pickle_or_run_text() -> None:
    """Whatever reads a file, in engine/ or launch/, does it without a loader that executes what it reads."""
    loaders = re.compile(
        r"^\s*(import|from)\s+(pickle|marshal|shelve|dill)\b|torch\.load\(|np\.load\(|yaml\.(load|unsafe_load)\(|"
        r"(?<![\w.])(eval|exec)\(",
        re.MULTILINE,
    )
    root = Path(__file__).parents[2]
    sources = [path for folder in ("engine", "launch") for path in (root / folder).rglob("*.py")]
    assert len(sources) > 100
    assert [str(path) for path in sources if loaders.search(path.read_text())] == []
