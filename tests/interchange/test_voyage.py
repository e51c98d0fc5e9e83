"""The whole way as a user goes it: train on two ranks, export, import, train on from that, generate."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launch import convert, generate
from tests.interchange.saved_runs import masters
from tests.system import runs


def test_train_export_import_train_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.corpus(tmp_path)
    tp2 = ("parallel.tp=2", "parallel.dp=1", "model.kv_heads=1", "run.name=first", "train.steps=3")
    first = runs.run(tmp_path, *tp2)
    assert first.returncode == 0, first.stdout
    assert convert.main(["export", str(tmp_path / "first"), str(tmp_path / "hf")]) == 0
    shutil.rmtree(tmp_path / "first" / "checkpoints")
    assert convert.main(["import", str(tmp_path / "hf"), str(tmp_path / "taken")]) == 0
    said = capsys.readouterr().out

    command = said.splitlines()[-1].split()
    rest = [part for part in runs.TINY if not part.startswith("model.")]
    second = subprocess.run(
        [sys.executable, *command[1:], *rest, f"data.paths=[{tmp_path / 'corpus.jsonl'}]", f"run.root={tmp_path}",
         "train.steps=1", "optim.lr=1e-30", "optim.min_lr=0"],
        cwd=runs.REPO, env=runs.environment(), text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert second.returncode == 0, second.stdout + second.stderr
    trained = tmp_path / "taken-trained"
    assert (trained / "tokenizer.json").read_bytes() == (tmp_path / "first" / "tokenizer.json").read_bytes()
    taken, kept = masters(tmp_path / "taken"), runs.weights(trained / "checkpoints" / "step_00000001")
    for name, tensor in taken.items():  # a step too short to round to anything
        assert torch.equal(kept[f"master/{name}"], tensor)

    texts = []
    for run in ("taken", "taken-trained"):
        assert generate.main([f"run={tmp_path / run}", "prompt=the sea", "tokens=20", "temperature=0"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("the sea")
