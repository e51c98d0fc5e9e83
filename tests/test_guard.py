"""What a run does about data.skip and about a ledger that is not the one its checkpoint knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import Config
from engine.device import Device
from engine.errors import CheckpointError, ConfigError
from engine.guard import _joined
from engine.stability.actions import ROLLBACK, Action
from engine.stability.ledger import NOTE, Ledger
from engine.stability.skips import Skips
from engine.trainer import Trainer
from tests.ranks import run_ranks
from tests.system.runs import corpus
from tests.voyages import BATCH, settings, train_here


def test_data_can_be_passed_over_only_ahead_of_what_was_trained_on() -> None:
    saved = Skips(dropped=((4, 8),))
    assert _joined(saved, Skips(dropped=((4, 8),)), 20).dropped == ((4, 8),)
    assert _joined(saved, Skips(dropped=((30, 40),)), 20).dropped == ((4, 8), (30, 40))
    assert _joined(saved, Skips(dropped=((0, 5),)), 0).dropped == ((0, 8),)
    with pytest.raises(ConfigError, match=r"data\.skip=\[\[20, 24\]\] names samples .* \(the newest is 23\); write"):
        _joined(saved, Skips(dropped=((20, 24),)), 20)
    assert _joined(saved, Skips(dropped=((24, 25),)), 20).dropped == ((4, 8), (24, 25))
    done = [Action(ROLLBACK, 3, first=6, stop=16, to=1)]  # passed over 10 to 19: the newest is 33
    with pytest.raises(ConfigError, match=r"\(the newest is 33\)"):
        _joined(saved, Skips(dropped=((30, 32),)), 20, done)
    assert _joined(saved, Skips(dropped=((34, 40),)), 20, done).dropped == ((4, 8), (34, 40))


def test_a_ledger_that_is_not_the_one_the_checkpoint_knows_is_refused(tmp_path: Path) -> None:
    corpus(tmp_path)
    run_ranks(1, train_here, settings(tmp_path, "run"), range(60 * BATCH, 64 * BATCH))
    path = tmp_path / "run" / "ledger.jsonl"
    path.unlink()
    other = Ledger(path)
    other.append(NOTE, {})
    other.append(NOTE, {})
    other.close()
    with pytest.raises(AssertionError, match=r"is not the ledger of the checkpoint that is continued; put back"):
        run_ranks(1, train_here, settings(tmp_path, "run", train={"steps": 110}))
    path.unlink()
    with pytest.raises(AssertionError, match=r"holds 0 records, but the checkpoint that is continued knows of 2; put"):
        run_ranks(1, train_here, settings(tmp_path, "run", train={"steps": 110}))


def restore_here(rank: int, world: int, config: Config, changes: list[dict[str, Any]]) -> list[str]:
    """Return what is said of states that hold something else."""
    trainer = Trainer(config, Device(torch.device("cpu"), "gloo"))
    said = []
    for change in changes:
        with pytest.raises(CheckpointError) as refused:
            trainer.guard.restore({**trainer.guard.state(), **change}, 0, own=True)
        said.append(str(refused.value))
    trainer.close()
    return said


def test_a_state_that_says_something_else_is_refused_in_one_line(tmp_path: Path) -> None:
    corpus(tmp_path)
    changes: list[dict[str, Any]] = [{"watch": 3}, {"watch": {}}, {"troubles": ["x"]}, {"known": None}, {"given": {}}]
    (said,) = run_ranks(1, restore_here, settings(tmp_path, "run"), changes)
    assert len(said) == 5
    assert all("does not say what was watched" in text and "\n" not in text for text in said)
