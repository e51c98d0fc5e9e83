"""A replay carries out what the ledger says and decides nothing by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import Config
from engine.device import Device
from engine.errors import ConfigError
from engine.replay import compare, prepare, read_config, rows
from engine.stop_request import StopRequest
from engine.trainer import Trainer
from tests.ranks import run_ranks
from tests.system.runs import corpus
from tests.voyages import BATCH, Poisoned, decided, settings, train_here

POISON = range(60 * BATCH, 64 * BATCH)


def replay_here(rank: int, world: int, config: Config, until: int, poison: Sequence[int]) -> None:
    trainer = Trainer(config, Device(torch.device("cpu"), "gloo"))
    poisoned: Any = Poisoned(trainer.data.train, poison)
    trainer.data = replace(trainer.data, train=poisoned)
    with StopRequest() as stop:
        trainer.fit(stop, until)
    trainer.close()


def test_the_step_that_was_gone_back_from_is_replayed_as_it_was(tmp_path: Path) -> None:
    """Its verdict is no new decision; and the rate it was trained at is not the one the run went on with later."""
    corpus(tmp_path)
    run_ranks(1, train_here, settings(tmp_path, "run", train={"steps": 80}), POISON)
    later = settings(tmp_path, "run", train={"steps": 82}, optim={"lr": 1e-3, "min_lr": 1e-3})
    run_ranks(1, train_here, later, POISON)
    (action,) = decided(tmp_path, "run")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 8')  # a crash cut this off
    plan = prepare(tmp_path / "run", action.step + 1, 0, tmp_path / "scratch")
    run_ranks(1, replay_here, plan.config, plan.step, POISON)
    lines, differing = compare(tmp_path / "run", plan)
    assert differing == 0, lines
    assert sorted(rows(plan.scratch, 0)) == list(range(plan.begin + 1, action.step + 2))
    assert decided(tmp_path, "scratch") == []
    assert read_config(tmp_path / "run", 82).optim.lr == 1e-3
    with pytest.raises(ConfigError, match=r"step=83 is behind the end of the run, train\.steps=82"):
        read_config(tmp_path / "run", 83)
