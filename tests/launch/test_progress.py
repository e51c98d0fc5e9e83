"""Whether starting a run again may bring it further."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.stability.ledger import COMMIT, INTENT, Ledger
from launch.progress import Restarts, progress


def save(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)


@pytest.mark.parametrize(
    ("failures", "restarts"),
    [
        ([(76, 5), (76, 9), (124, 11)], 3),  # progress each time
        ([(76, 5), (76, 5), (76, 5)], 2),  # a death is given a second try, a third is not
        ([(1, 5), (1, 5)], 1),  # a bug is not
        ([(76, 0), (76, 0)], 1),
        ([(1, 0)], 0),
        ([(76, 5), (76, 6), (76, 7), (76, 8)], 3),
    ],
)
def test_ranks_start_again_only_while_that_may_help(
    tmp_path: Path, failures: list[tuple[int, int]], restarts: int
) -> None:
    limits = Restarts(tmp_path, 3)
    for code, step in failures:
        if step and not (tmp_path / "checkpoints" / f"step_{step:08d}").exists():
            save(tmp_path, step)
        if limits.refusal(code) is not None:
            break
    assert limits.attempt == restarts


def test_a_rollback_is_progress_too(tmp_path: Path) -> None:
    """A run that went back 50 steps and died after 20 of them has not stood still."""
    save(tmp_path, 90)
    before = progress(tmp_path)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(COMMIT, {"intent": ledger.append(INTENT, {}).seq})
    ledger.close()
    (tmp_path / "checkpoints" / "step_00000090").rename(tmp_path / "checkpoints" / "step_00000060")
    assert before == (0, 90)
    assert progress(tmp_path) == (1, 60) > before
