"""What a machine refuses is answered like any other mistake: one line, exit code 2, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.data.tokenizer import Tokenizer
from tests.system.runs import corpus, run


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("run.name=taken", "the run folder {root}/taken cannot be written: File exists"),
        ("run.name=taken/mine", "the run folder {root}/taken/mine cannot be written: Not a directory"),
        (f"run.name={'n' * 300}", "cannot be written: File name too long"),
        ("data.cache_dir={root}/taken", "{root}/taken cannot be written: File exists; make room there, or write"),
    ],
)
def test_a_folder_that_cannot_be_written(tmp_path: Path, setting: str, reason: str) -> None:
    corpus(tmp_path)
    (tmp_path / "taken").write_text("a file")
    refused = run(tmp_path, "train.steps=1", "parallel.dp=2", setting.format(root=tmp_path))
    assert refused.returncode == 2, refused.stdout
    told = [line for line in refused.stdout.splitlines() if line.startswith("trimaran: ")]
    assert len(told) == 1
    assert reason.format(root=tmp_path) in told[0]
    assert "Traceback" not in refused.stdout


def test_a_corpus_refused_by_its_workers_leaves_no_other_complaint(tmp_path: Path) -> None:
    """A rank leaves at once: Python's own tidying must not find the pool of processes and warn of leaks."""
    corpus(tmp_path)
    Tokenizer.train(["wind and sail"], 300).save(tmp_path / "tokenizer.json")
    refused = run(tmp_path, f"data.tokenizer={tmp_path}/tokenizer.json", "data.jsonl_key=body", "data.workers=2")
    assert refused.returncode == 2
    assert "no line has a text field 'body'" in refused.stdout.splitlines()[-1]
    assert "leaked" not in refused.stdout
