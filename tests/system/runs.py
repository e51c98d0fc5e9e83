"""Start real runs the way a user does, and look at what they leave."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.reader import open_checkpoint

REPO = Path(__file__).resolve().parents[2]

TINY = [
    "model.layers=2", "model.hidden=32", "model.heads=2", "model.ffn=64", "model.hidden_dropout=0.1",
    "data.tokenizer_vocab=300", "data.seq_len=32", "data.workers=1", "data.split=[90,10,0]",
    "train.micro_batch=2", "train.global_batch=4", "train.eval_samples=8", "train.eval_interval=0",
    "optim.lr=1e-2", "monitor.console=plain",
]  # fmt: skip


def corpus(folder: Path) -> Path:
    """Write a small text corpus of distinct documents; return the file."""
    path = folder / "corpus.jsonl"
    words = "the sea wind hull mast sail keel rudder anchor harbour tide rope deck crew storm calm".split()  # noqa: SIM905
    lines = []
    for number in range(400):
        text = " ".join(words[(number * 7 + 3 * k + k * k) % len(words)] for k in range(60))
        lines.append(json.dumps({"text": f"{number} {text}"}))
    path.write_text("\n".join(lines))
    return path


def command(folder: Path, *overrides: str) -> list[str]:
    """The command line of a tiny run in `folder`."""
    data = f"data.paths=[{folder / 'corpus.jsonl'}]"
    return [sys.executable, "launch/pretrain.py", *TINY, data, f"run.root={folder}", *overrides]


def environment(**extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    return {**kept, "PYTHONPATH": str(REPO), "PYTHONUNBUFFERED": "1", **extra}


def run(folder: Path, *overrides: str, timeout: float = 120, file_limit: int = 0) -> subprocess.CompletedProcess[str]:
    """Run to the end; return the process with its output (stdout and stderr together in stdout).

    `file_limit` is the largest file, in bytes, that the run may write (0: any).
    """

    def limit() -> None:
        if file_limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    return subprocess.run(
        command(folder, *overrides), cwd=REPO, env=environment(), timeout=timeout, text=True, preexec_fn=limit,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start a run in its own process group."""
    return subprocess.Popen(
        command(folder, *overrides), cwd=REPO, env=environment(), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def metrics(folder: Path, name: str = "default") -> list[dict[str, Any]]:
    path = folder / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def step_folder(folder: Path, step: int, name: str = "default") -> Path:
    return folder / name / "checkpoints" / f"step_{step:08d}"


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a checkpoint whole."""
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.whole(name) for name in checkpoint.names()}
