"""Whole runs of every objective: text in, some steps, a validation loss that falls, a resume that changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from engine.config import Config
from engine.device import Device
from engine.stop_request import StopRequest
from engine.trainer import Trainer
from tests.objectives.test_settings import CHOICES, chosen
from tests.ranks import run_ranks
from tests.system.runs import corpus, metrics
from tests.voyages import assert_same_run, settings

STEPS = 8


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


def test_every_objective_learns(tmp_path: Path) -> None:
    corpus(tmp_path)
    masks = {"span_corruption": {"document_mask": True, "position_reset": True}, "fim": {"document_mask": True}}
    configs = [(config_of(tmp_path, choice, choice, **masks.get(choice, {})), None) for choice in CHOICES]
    run_ranks(2, train_all, configs, timeout=280)
    for choice in CHOICES:
        rows = metrics(tmp_path, choice)
        first, *_, last = (row["loss"] for row in rows if "loss" in row)
        (held_out,) = (row["valid_loss"] for row in rows if "valid_loss" in row)
        assert max(last, held_out) < first - 0.3, f"{choice}: {first}, {last}, {held_out}"


def test_a_run_that_was_interrupted_draws_the_same(tmp_path: Path) -> None:
    corpus(tmp_path)
    whole, parts = (config_of(tmp_path, "ul2", name) for name in ("whole", "parts"))
    run_ranks(1, train_all, [(whole, None), (parts, 3), (parts, None)])
    assert_same_run(tmp_path, "whole", "parts")
