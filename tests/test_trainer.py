"""The whole run, watched: what spikes is rolled back, and the run that comes of it could have been told beforehand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint.folder import saved_steps
from engine.config import Config
from engine.device import Device
from engine.stability.actions import ROLLBACK, STOP, skips_after
from engine.stability.ledger import read_ledger
from engine.stability.skips import Skips
from engine.stop_request import StopRequest
from engine.trainer import Trainer
from tests.ranks import run_ranks
from tests.system.runs import corpus, metrics
from tests.voyages import BATCH, QUICK, STEPS, assert_same_run, decided, settings, train_here

POISON = range(60 * BATCH, 64 * BATCH)

LAYOUTS: list[tuple[str, dict[str, Any], int]] = [
    ("disk", {}, 1),
    ("tp", {"tp": 2, "sequence_parallel": True}, 2),
    ("pp", {"pp": 2}, 2),
    ("dp", {"dp": 2}, 2),
]


@pytest.mark.parametrize(("layout", "parallel", "world"), LAYOUTS, ids=[name for name, _, _ in LAYOUTS])
def test_a_run_that_rolled_back_is_the_run_that_was_told_what_to_pass_over(
    tmp_path: Path, layout: str, parallel: dict[str, Any], world: int
) -> None:
    """The oracle: bitwise equal weights and moments; and the ledger alone makes the same run again."""
    corpus(tmp_path)
    stability = {**QUICK, "snapshot_mb": 0 if layout == "disk" else 64}
    same: dict[str, Any] = {"parallel": parallel, "optim": {"clip_mode": "adagc", "clip_warmup": 20}}  # it remembers
    run_ranks(world, train_here, settings(tmp_path, "found", stability=stability, **same), POISON)
    actions = decided(tmp_path, "found")
    assert [action.kind for action in actions] == [ROLLBACK]
    assert 60 <= actions[0].onset <= 61
    passed = skips_after(Skips(), actions).dropped
    assert set(POISON) <= {place for first, stop in passed for place in range(first, stop)}
    told = settings(tmp_path, "told", data={"skip": [list(piece) for piece in passed]}, **same)
    run_ranks(world, train_here, told, POISON)
    assert decided(tmp_path, "told") == []
    assert_same_run(tmp_path, "found", "told")
    (tmp_path / "replayed").mkdir()
    shutil.copy(tmp_path / "found" / "ledger.jsonl", tmp_path / "replayed")
    run_ranks(world, train_here, settings(tmp_path, "replayed", **same), POISON)
    assert decided(tmp_path, "replayed") == actions
    assert_same_run(tmp_path, "found", "replayed")
    rows = [row for row in metrics(tmp_path, "found") if "loss" in row]
    assert [row["step"] for row in rows if row["timeline"] == 1][-1] == STEPS
    assert max(row["loss"] for row in rows if row["timeline"] == 0) > 1.0 + max(
        row["loss"] for row in rows if row["timeline"] == 1
    )
    assert json.loads((tmp_path / "found" / "ledger.jsonl").read_text().splitlines()[1])["kind"] == "commit"


def test_ranks_whose_parts_differ_in_size_keep_the_same_states(tmp_path: Path) -> None:
    """There is room for three states on the first stage and for two on the last, which has one norm more."""
    corpus(tmp_path)
    config = settings(tmp_path, "uneven", model={"tied_embeddings": False}, parallel={"pp": 2},
                      stability={**QUICK, "snapshot_mb": 706_000 / 2**20}, checkpoint={"interval": 0})  # fmt: skip
    run_ranks(2, train_here, config, POISON)
    assert [action.kind for action in decided(tmp_path, "uneven")] == [ROLLBACK]


def test_poison_without_end_ends_the_run_with_an_explanation(tmp_path: Path) -> None:
    corpus(tmp_path)
    config = settings(tmp_path, "lost", stability={**QUICK, "lower_after": 1, "tries": 2, "settle": 60})
    message = r"StabilityStop: step \d+: .*still after 2 tries.*; stability\.tries=2 allows no further rollback"
    with pytest.raises(AssertionError, match=message):
        run_ranks(1, train_here, config, range(60 * BATCH, 10**5))
    kinds = [(action.kind, action.lr_factor) for action in decided(tmp_path, "lost")]
    assert kinds == [(ROLLBACK, 1.0), (ROLLBACK, 0.5), (STOP, 1.0)]
    folder = tmp_path / "lost" / "checkpoints"
    assert saved_steps(folder)[0] <= 60, "what the spike spoilt would be continued from"


def flip_once(rank: int, world: int, config: Config, step: int, where: str) -> int:
    """Train, with one bit flipped on rank 1 at `step`: in a gradient it is about to hand over, or in a weight."""
    trainer = Trainer(config, Device(torch.device("cpu"), "gloo"))
    stepper, done = trainer.stepper, []
    finish, execute = stepper.buckets.finish, stepper.gradients

    def flip(tensor: torch.Tensor) -> None:
        if rank == 1 and trainer.states.step == step and not done:
            done.append(True)
            tensor.view(torch.int32)[7] ^= 1 << 30

    def finish_spoilt() -> None:
        if where == "gradient":
            flip(stepper.buckets.flat_grads)
        finish()

    def execute_spoilt(*args: Any) -> Any:
        if where == "weight":
            norm = next(weight for weight in stepper.chunks[0].parameters() if weight.ndim == 1)
            flip(norm.data)
        return execute(*args)

    stepper.buckets.finish = finish_spoilt  # type: ignore[method-assign]
    stepper.gradients = execute_spoilt  # type: ignore[method-assign]
    with StopRequest() as stop:
        trainer.fit(stop)
    trainer.close()
    return len(done)


@pytest.mark.parametrize(("where", "parallel"), [("gradient", {"dp": 2}), ("weight", {"tp": 2})])
def test_a_flipped_bit_is_found_named_and_undone(tmp_path: Path, where: str, parallel: dict[str, Any]) -> None:
    corpus(tmp_path)
    groups: dict[str, Any] = {"parallel": {**parallel, "overlap": False}}
    run_ranks(2, train_here, settings(tmp_path, "whole", **groups))
    assert run_ranks(2, flip_once, settings(tmp_path, "spoilt", **groups), 51, where) == [0, 1]
    assert_same_run(tmp_path, "whole", "spoilt")
    records = read_ledger(tmp_path / "spoilt" / "ledger.jsonl")[0].records
    if where == "gradient":
        assert [record.body for record in records] == [{"fault": "differs", "step": 51, "ranks": [1]}]
    else:
        (action,) = decided(tmp_path, "spoilt")
        assert (action.kind, action.cause, action.to, action.first) == (ROLLBACK, "drift", 40, 0)
        assert "rank 1" in action.reason
