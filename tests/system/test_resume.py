"""A run survives: killed anywhere and started again it ends where an undisturbed one ends."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from engine.monitor.report.pipeline import measured
from tests.system.runs import corpus, metrics, run, start, step_folder, weights

STEPS = 12
CLIPPING = ("optim.clip_mode=adagc", "optim.clip_warmup=2", "optim.clip_relative=1")  # remembers, tensor by tensor
LAYOUT = (
    "parallel.tp=2", "parallel.sequence_parallel=true", *CLIPPING, f"train.steps={STEPS}", "checkpoint.interval=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of STEPS steps."""
    folder = tmp_path_factory.mktemp("whole")
    corpus(folder)
    done = run(folder, *LAYOUT)
    assert done.returncode == 0, done.stdout
    return folder


def equal(a: Path, b: Path, tolerance: float = 0.0) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if tolerance == 0:
            assert torch.equal(tensor, theirs[name]), name
        else:
            error = (tensor - theirs[name]).norm() / (theirs[name].norm() + 1e-3)
            assert error < tolerance, f"{name}: {error:.1e}"


def wait_for(folder: Path, steps: int, process: object) -> None:
    deadline = time.monotonic() + 90
    while len(metrics(folder)) < steps:
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.02)


def test_second_start_has_nothing_to_do(finished: Path) -> None:
    before = metrics(finished)
    again = run(finished, *LAYOUT)
    assert again.returncode == 0
    assert "nothing left to do" in again.stdout
    assert metrics(finished) == before


def test_kill_9_and_resume_is_bitwise_the_same(finished: Path, tmp_path: Path) -> None:
    """All ranks at once, at any moment; tests/soak plays one at a time."""
    corpus(tmp_path)
    process = start(tmp_path, *LAYOUT)
    wait_for(tmp_path, 6, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for line in os.popen(f"pgrep -f run.root={tmp_path}").read().split():  # ranks live in sessions of their own
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line), signal.SIGKILL)
    resumed = run(tmp_path, *LAYOUT)
    assert resumed.returncode == 0, resumed.stdout
    equal(step_folder(tmp_path, STEPS), step_folder(finished, STEPS))
    assert [m["step"] for m in metrics(tmp_path) if "loss" in m] == list(range(1, STEPS + 1))


def test_resume_on_another_layout_is_within_rounding(finished: Path, tmp_path: Path) -> None:
    corpus(tmp_path)
    half = run(tmp_path, *LAYOUT, "train.steps=4", "optim.decay_steps=12")
    assert half.returncode == 0, half.stdout
    other = run(tmp_path, "parallel.pp=2", "parallel.dp=2", "train.micro_batch=1", *CLIPPING, f"train.steps={STEPS}",
                "monitor.pipeline_interval=1")  # fmt: skip
    assert other.returncode == 0, other.stdout
    timed = measured(tmp_path / "default")
    assert timed is not None
    assert (timed[0], timed[1].stages, timed[1].micros) == (STEPS, 2, 2)
    assert "at step 4" in other.stdout
    equal(step_folder(tmp_path, STEPS), step_folder(finished, STEPS), tolerance=1e-3)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGUSR1, 75)])
def test_stop_signals_finish_the_step_and_save(tmp_path: Path, number: signal.Signals, code: int) -> None:
    corpus(tmp_path)
    process = start(tmp_path, "parallel.dp=2", "train.steps=100000", "checkpoint.interval=0")
    wait_for(tmp_path, 2, process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    last = metrics(tmp_path)[-1]["step"]
    assert step_folder(tmp_path, last).is_dir(), output
    assert "Traceback" not in output


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    corpus(tmp_path)
    assert run(tmp_path, "train.steps=4", "checkpoint.interval=2").returncode == 0
    shard = next(step_folder(tmp_path, 4).glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    again = run(tmp_path, "train.steps=4", "checkpoint.interval=2")
    assert again.returncode == 0, again.stdout
    assert shard.name in again.stdout
    assert "at step 2" in again.stdout
    assert weights(step_folder(tmp_path, 4))


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    corpus(tmp_path)
    assert run(tmp_path, "train.steps=1").returncode == 0
    other = run(tmp_path, "train.steps=2", "model.ffn=96")
    assert other.returncode == 2
    assert "model.ffn is 64 there and 96 here" in other.stdout
    assert "Traceback" not in other.stdout


def test_other_data_does_not_change_the_tokenizer_of_a_run(tmp_path: Path) -> None:
    """A tokenizer trained on the new text would give every token id another meaning."""
    corpus(tmp_path)
    assert run(tmp_path, "train.steps=1").returncode == 0
    new = tmp_path / "new.jsonl"
    new.write_text((tmp_path / "corpus.jsonl").read_text().replace("sail", "otter").replace("the", "wolf"))
    accept = "checkpoint.accept_changes=[data.paths]"
    other = run(tmp_path, "train.steps=2", f"data.paths=[{new}]", accept)
    assert other.returncode == 2
    assert f"write data.tokenizer={tmp_path}/default/tokenizer.json" in other.stdout
    options = ("train.steps=2", f"data.paths=[{new}]", f"data.tokenizer={tmp_path}/default/tokenizer.json")
    asked = run(tmp_path, *options)
    assert asked.returncode == 2
    assert accept in asked.stdout
    kept = run(tmp_path, *options, accept)
    assert kept.returncode == 0, kept.stdout
    assert "changed since step 1: data.paths other texts, or shares of them -> these, train.steps 1 -> 2" in kept.stdout
    assert metrics(tmp_path)[-1]["step"] == 2


def test_full_disk_does_not_stop_training(tmp_path: Path) -> None:
    """A limit on file sizes stands in for the full disk: the corpus fits under it, a wider model's shards do not."""
    corpus(tmp_path)
    wide = ("model.hidden=192", "model.ffn=512", "checkpoint.interval=2")
    first = run(tmp_path, "train.steps=2", *wide)
    assert first.returncode == 0, first.stdout
    limited = run(tmp_path, "train.steps=6", *wide, file_limit=2**20)
    assert limited.returncode == 2, limited.stdout
    assert "step 4 was NOT saved" in limited.stdout
    assert "The last step, 6, could not be saved" in limited.stdout
    assert metrics(tmp_path)[-1]["step"] == 6
    assert weights(step_folder(tmp_path, 2)), "the old checkpoint must stay whole"
    healed = run(tmp_path, "train.steps=6", *wide)
    assert healed.returncode == 0, healed.stdout
    assert weights(step_folder(tmp_path, 6))
