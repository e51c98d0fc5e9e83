"""The command that scores a checkpoint: its table, its file, and its mistakes in one line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from launch.evaluate import main
from tests.interchange.saved_runs import MODELS, save_run, small_tokenizer


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_run(tmp_path / "run", MODELS["llama"], tokenizer=small_tokenizer())
    (tmp_path / "sea.txt").write_text("the sea and the wind")
    return tmp_path / "run"


def test_it_prints_a_table_and_keeps_it(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = [f"run={run}", f"data.valid.sea={run.parent / 'sea.txt'}", "run.device=cpu", "data.workers=1"]
    assert main(asked) == 0, capfd.readouterr().err
    output = capfd.readouterr().out
    assert "step 7 of" in output
    row = next(line.split() for line in output.splitlines() if line.startswith("sea"))
    kept = json.loads((run / "evaluation.json").read_text())["7"]["sets"]["sea"]
    assert row[1:3] == [f"{kept['loss']:.4f}", f"{kept['perplexity']:.2f}"]
    assert kept["bytes"] == 20


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run=nowhere"], "nowhere is neither a checkpoint nor a run folder"),
        (["checkpoint=8"], "holds no checkpoint of step 8; its checkpoints are of steps 7"),
        (["checkpoint=last"], "checkpoint=last is not a step"),
        (["optim.lr=1"], "optim.lr is nothing that an evaluation can change"),
        (["paralel.tp=2"], "Did you mean 'parallel.tp'"),
        (["parallel.tp"], "write key=value"),
        (["parallel.tp=two"], "parallel.tp"),
        (["parallel.tp=3"], "parallel.tp=3 does not divide model.heads=4"),
        (["data.valid.a/b=x"], "a set cannot be called 'a/b'"),
        (["tasks=gone.yaml"], "tasks=gone.yaml: there is no such file"),
    ],
)
def test_mistakes_take_one_line(
    run: Path, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"run={run}", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error


def test_what_tasks_need_is_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "task.yaml").write_text("task: x\n")
    if importlib.util.find_spec("lm_eval") is None:
        assert main([f"run={run}", f"tasks={tmp_path / 'task.yaml'}"]) == 2
        assert "pip install lm-eval" in capsys.readouterr().err
    (run / "tokenizer.json").unlink()
    assert main([f"run={run}", f"data.valid.sea={tmp_path / 'sea.txt'}"]) == 2
    assert "has no tokenizer.json" in capsys.readouterr().err
