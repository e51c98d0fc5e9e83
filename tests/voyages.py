"""Whole runs of the trainer inside the ranks of a test, on data that may be poisoned, and what they leave behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.checkpoint.folder import saved_steps, step_path
from engine.config import Config
from engine.data.samples import Sample, Samples
from engine.device import Device
from engine.stability.actions import Action, actions
from engine.stability.ledger import read_ledger
from engine.stop_request import StopRequest
from engine.trainer import Trainer
from tests.layouts import make_config
from tests.system.runs import weights

BATCH, STEPS = 4, 100

# Small windows, so that a run of a hundred steps has a calm beginning, a spike and a calm end.
QUICK: dict[str, Any] = {
    "window": 32, "warm": 16, "hold_start": 8, "hold_rollback": 4, "loss_excess": 0.5, "alarms": 2, "min_rewind": 8,
    "skip_before": 2, "skip_least": 8, "cooldown": 4, "healthy_after": 2, "snapshot_interval": 5, "settle": 8,
    "drift_interval": 20,
}  # fmt: skip


def settings(folder: Path, name: str, **groups: dict[str, Any]) -> Config:
    """Return the configuration of a small run called `name` in `folder`, on the corpus of `tests.system.runs`."""
    base: dict[str, dict[str, Any]] = {
        "model": {"layers": 2, "hidden": 32, "ffn": 64, "hidden_dropout": 0.1, "init_std": 0.05},
        "data": {"paths": [str(folder / "corpus.jsonl")], "cache_dir": str(folder / "data"), "tokenizer_vocab": 300,
                 "seq_len": 32, "workers": 1, "split": [90, 10, 0], "prefetch": 0},
        "optim": {"lr": 3e-3, "min_lr": 3e-3, "schedule": "constant", "clip": 1.0},
        "precision": {"dtype": "fp32"},
        "train": {"steps": STEPS, "global_batch": BATCH, "micro_batch": 2, "eval_interval": 0, "eval_samples": 8},
        "checkpoint": {"interval": 20, "keep_last": 10},
        "monitor": {"console": "off"},
        "run": {"root": str(folder), "name": name},
        "stability": QUICK,
    }  # fmt: skip
    merged = {group: {**base.get(group, {}), **groups.get(group, {})} for group in {*base, *groups}}
    return make_config(**merged)


class Poisoned:
    """`Samples` in which those at the places of `poison` are noise, the same each time."""

    def __init__(self, samples: Samples, poison: Sequence[int]) -> None:
        self._samples, self._poison = samples, set(poison)

    def __getitem__(self, index: int) -> Sample:
        sample = self._samples[index]
        if index not in self._poison:
            return sample
        noise = np.random.default_rng([index, 1]).integers(0, self._samples.vocab, sample.window.shape)
        return replace(sample, window=noise)


def train_here(rank: int, world: int, config: Config, poison: Sequence[int] = ()) -> int:
    """Be a rank of the run; return the number of steps it was at in the end."""
    trainer = Trainer(config, Device(torch.device("cpu"), "gloo"))
    poisoned: Any = Poisoned(trainer.data.train, poison)
    trainer.data = replace(trainer.data, train=poisoned)
    try:
        with StopRequest() as stop:
            trainer.fit(stop)
        return trainer.states.step
    finally:
        trainer.close()


def decided(folder: Path, name: str) -> list[Action]:
    """Return the decisions in a run's ledger."""
    return actions(read_ledger(folder / name / "ledger.jsonl")[0].records)


def newest(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Return every tensor of a run's newest checkpoint."""
    checkpoints = folder / name / "checkpoints"
    return weights(step_path(checkpoints, saved_steps(checkpoints)[0]))


def assert_same_run(folder: Path, one: str, two: str) -> None:
    """Fail unless the newest checkpoints of two runs are equal bit by bit."""
    left, right = newest(folder, one), newest(folder, two)
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key
