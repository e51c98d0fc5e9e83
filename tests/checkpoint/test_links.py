"""Run folders unpacked from elsewhere: links in them lead no writer outside."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.checkpoint.lock import FolderLock
from engine.errors import CheckpointError
from tests.checkpoint.helpers import find, make_writer, names_in, save, whole


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder of the user's that nothing may touch."""
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    return folder


@pytest.mark.parametrize("ending", [".tmp", ".replaced"])
def test_a_link_in_the_place_of_a_save_is_removed_and_not_followed(tmp_path: Path, precious: Path, ending: str) -> None:
    run = tmp_path / "run"
    assert save(run, 1, whole(a=torch.ones(1))).ok
    (run / f"step_00000002{ending}").symlink_to(precious)
    assert save(run, 2, whole(a=torch.ones(1))).ok
    assert names_in(run) == ["step_00000001", "step_00000002"]
    assert names_in(precious) == ["thesis.txt"]


def test_a_link_to_a_checkpoint_is_skipped_and_pruned(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    assert save(run, 1, whole(a=torch.ones(1))).ok
    elsewhere = save(other, 2, whole(a=torch.ones(1))).path
    (run / "step_00000002").symlink_to(elsewhere)
    found = find(run)
    assert found is not None
    assert found.step == 1
    assert "step_00000002: it is a symbolic link." in found.warnings[0]
    writer = make_writer(run, keep_last=1)
    writer.save(3, whole(a=torch.ones(1)), {})
    writer.close()
    assert [result.error for result in writer.poll()] == [None]
    assert names_in(run) == ["step_00000003"]
    assert len(names_in(elsewhere)) == 2


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "tokenizer.json", "wandb_id.tmp", "ledger.jsonl"])
def test_a_run_folder_whose_files_are_links_is_not_written_to(tmp_path: Path, precious: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(precious)  # a larger disk
    FolderLock(tmp_path / "run").release()
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to(precious / "thesis.txt")
    with pytest.raises(CheckpointError, match=f"{name} is a symbolic link"):
        FolderLock(tmp_path / "run")
    assert (precious / "thesis.txt").read_text() == "years of work"
