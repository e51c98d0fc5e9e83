"""Whole runs of every objective: text in, some steps, a validation loss that falls, a resume that changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import Config
from engine.device import Device
from engine.stop_request import StopRequest
from engine.trainer import Trainer
from tests.objectives.test_settings import CHOICES, chosen
from tests.ranks import run_ranks
from tests.system.runs import corpus, metrics
from tests.voyages import assert_same_run, settings

STEPS = 6


def config_of(folder: Path, choice: str, name: str, **data: Any) -> Config:
    positions = "learned_2d" if choice == "glm-2d" else "rope"
    return settings(
        folder, name, objective=vars(chosen(choice)), model={"hidden_dropout": 0.0, "positions": positions},
        data={"tokenizer_vocab": 320, "seq_len": 64, "eod_loss": True, **data}, optim={"lr": 1e-2, "min_lr": 1e-2},
        train={"steps": STEPS, "global_batch": 8, "eval_interval": 0}, checkpoint={"interval": 0},
    )  # fmt: skip


def train_all(rank: int, world: int, configs: list[tuple[Config, int | None]]) -> int:
    """Be a rank of one run after another."""
    for config, until in configs:
        trainer = Trainer(config, Device(torch.device("cpu"), "gloo"))
        try:
            with StopRequest() as stop:
                trainer.fit(stop, until)
        finally:
            trainer.close()
    return len(configs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every objective, and a second one of UL2's that was interrupted."""
    path = tmp_path_factory.mktemp("runs")
    corpus(path)
    masks = {"span_corruption": {"document_mask": True, "position_reset": True}, "fim": {"document_mask": True}}
    whole = [(config_of(path, choice, choice, **masks.get(choice, {})), None) for choice in CHOICES]
    parts = config_of(path, "ul2", "parts")
    run_ranks(1, train_all, [*whole, (parts, 3), (parts, None)], timeout=280)
    return path


@pytest.mark.parametrize("choice", CHOICES)
def test_every_objective_learns(folder: Path, choice: str) -> None:
    rows = metrics(folder, choice)
    first, *_, last = (row["loss"] for row in rows if "loss" in row)
    (held_out,) = (row["valid_loss"] for row in rows if "valid_loss" in row)
    assert max(last, held_out) < first - 0.3, f"{choice}: {first}, {last}, {held_out}"


def test_a_run_that_was_interrupted_draws_the_same(folder: Path) -> None:
    assert_same_run(folder, "ul2", "parts")
