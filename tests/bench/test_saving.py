"""What the bench measures of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.checkpoint.writer import CheckpointWriter, SaveResult
from tests.bench.pairs import Pairs, Plan
from tests.bench.saving import finish, stall, steps_while_writing
from tests.bench.sizes import QUICK
from tests.bench.training import layouts
from tests.ranks import run_ranks


@pytest.mark.parametrize("body", [stall, steps_while_writing])
def test_saves_are_timed_after_the_warm_up(body: Callable[..., Pairs]) -> None:
    (pairs,) = run_ranks(1, body, layouts(QUICK.samples)[0], QUICK, Plan(warmup=1, pairs=2, steps=1))
    assert len(pairs.ratios) == 2
    assert min(pairs.ours + pairs.theirs) > 0


def test_a_failed_save_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SaveResult(3, False, "no space left", 0, 0.0, 0.0, Path("x"))
    writer = CheckpointWriter.__new__(CheckpointWriter)
    monkeypatch.setattr(CheckpointWriter, "wait", lambda self: None)
    monkeypatch.setattr(CheckpointWriter, "poll", lambda self: [failed])
    with pytest.raises(RuntimeError, match="no space left"):
        finish(writer)
