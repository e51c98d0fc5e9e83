"""Looking back at a run: its steps come out again bit for bit, a forged record does not, and batches can be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.runs import REPO, corpus, environment, metrics, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    corpus(path)
    done = run(path, "train.steps=8", "parallel=dp2", "checkpoint.interval=4", "checkpoint.keep_last=5")
    assert done.returncode == 0, done.stdout
    return path


def call(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"launch/{script}.py", *arguments], cwd=REPO, env=environment(), timeout=120, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip


def test_steps_come_out_again_bit_for_bit(folder: Path) -> None:
    done = call("replay", f"run={folder}/default")
    assert done.returncode == 0, done.stdout
    assert "replaying steps 5 to 8" in done.stdout
    assert "4 steps replayed, 0 of them otherwise than logged; weights equal those of the checkpoint" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["corpus.jsonl", "data", "default"], (
        "left something behind"
    )


def test_a_record_that_is_not_what_was_trained_is_told(folder: Path) -> None:
    path = folder / "default" / "metrics.jsonl"
    text = path.read_text()
    lines = text.splitlines()
    loss = metrics(folder)[1]["loss"]
    lines[1] = lines[1].replace(str(loss), str(loss + 1e-9))
    path.write_text("\n".join(lines))
    try:
        done = call("replay", f"run={folder}/default", "step=2")
        assert done.returncode == 1
        assert f"loss was {loss + 1e-9}" in done.stdout
        assert "2 steps replayed, 1 of them otherwise than logged\n" in done.stdout
    finally:
        path.write_text(text)


def test_a_batch_can_be_read(folder: Path) -> None:
    done = call("show_batch", f"run={folder}/default", "step=7", "show=3")
    assert done.returncode == 0, done.stdout
    assert "step 7" in done.stdout
    assert "4 sequences; losses under the weights of step 4" in done.stdout
    losses = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("loss ")]
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)
    steps = [row for row in metrics(folder) if "loss" in row]
    assert abs(sum(losses) / 3 - steps[6]["loss"]) < 1.0
    assert "1 more sequences with a lower loss" in done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("replay", ["stepp=3"], "unknown setting 'stepp=3'; write key=value. Did you mean 'step'?"),
        ("replay", ["run=nowhere"], "nowhere holds no checkpoint to take the configuration from"),
        ("replay", ["run={}", "step=3", "timeline=1"], "timeline=1: the run was rolled back 0 times; write 0 to 0"),
        ("replay", ["run={}", "step=0"], "step=0 is not after step 0; write a later one"),
        ("show_batch", ["run={}"], "step is missing; write step=N"),
        ("show_batch", ["run={}", "step=3"], "holds no checkpoint before step=3"),
        ("show_batch", ["run={}", "step=x"], "step=x is not a whole number"),
    ],
)
def test_mistakes_are_answered_in_one_line(folder: Path, script: str, arguments: list[str], message: str) -> None:
    done = call(script, *(argument.format(folder / "default") for argument in arguments))
    assert done.returncode == 2
    assert done.stdout.startswith("trimaran: ")
    assert message in done.stdout
    assert done.stdout.count("\n") == 1
