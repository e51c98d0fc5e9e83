"""Real jobs on a real SLURM of two nodes: submit, die, requeue, preempt, resume, finish, cancel; srun; arrays."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.slurm.daemons import Slurm
from tests.slurm.jobs import (
    LOADED_S,
    log,
    slurm_environment,
    stand_in,
    submit,
    wait_for_step,
    wait_for_text,
)
from tests.system.runs import REPO, command, corpus, metrics, run, step_folder, weights

pytestmark = pytest.mark.timeout(900)
STEPS = 12
SAVES = ("checkpoint.interval=4", f"train.steps={STEPS}")


def same(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_job_goes_on_by_itself_after_a_death_and_a_preemption(slurm: Slurm, tmp_path: Path) -> None:
    """Two nodes. Rank 1 dies at step 6; when requeued, the job is warned at step 8; in the end nothing can be told."""
    plan = "+faults=[{what: kill, rank: 1, step: 6}, {what: sleep, rank: 0, step: 8, steps: 5, seconds: 4, attempt: 1}]"
    corpus(tmp_path)
    job = submit(slurm, tmp_path, "cluster.nodes=2", "parallel.dp=2", "run.max_restarts=0", *SAVES, plan)
    slurm.hurry(job, 1, LOADED_S)
    wait_for_step(tmp_path, 7, lambda: log(tmp_path, job))
    slurm.ask("scancel", "--signal=USR1", job)  # what SLURM itself does when it warns
    slurm.hurry(job, 2, LOADED_S)
    slurm.wait(job, "COMPLETED", "FAILED", seconds=LOADED_S)
    told = log(tmp_path, job)
    assert slurm.field(job, "JobState") == "COMPLETED", told
    story = [
        "rank 1 was ended by SIGKILL",
        f"job {job} ended with code 76 at step 6: requeued, failure 1 of at most 10",
        "asked to stop: saving step",
        f"job {job} was asked to stop and has saved at step",
        "requeued, to go on from there",
        f"job {job} is done (code 0, at step {STEPS})",
    ]
    for before, after in itertools.pairwise(story):
        assert before in told, told
        told = told[told.index(before) :]
        assert after in told, told
    assert [record["step"] for record in metrics(tmp_path) if "loss" in record] == list(range(1, STEPS + 1))
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    corpus(undisturbed)
    assert run(undisturbed, "parallel.dp=2", *SAVES, timeout=LOADED_S).returncode == 0
    same(step_folder(tmp_path, STEPS), step_folder(undisturbed, STEPS))


def test_ranks_of_srun_need_no_launcher(slurm: Slurm, tmp_path: Path) -> None:
    """Four tasks on two nodes are four ranks; a warned step saves and says that it is not done."""
    corpus(tmp_path)
    words = command(tmp_path, "parallel.tp=2", "parallel.dp=2", "run.device=cpu", "train.steps=100000")
    with open(tmp_path / "output", "w") as output:
        step = subprocess.Popen(
            ["srun", "--nodes=2", "--ntasks-per-node=2", "--job-name=direct", *words], cwd=REPO,
            env={**slurm_environment(slurm), "MASTER_ADDR": "localhost"}, stdout=output, stderr=output,
        )  # fmt: skip
    wait_for_step(tmp_path, 2, lambda: (tmp_path / "output").read_text())
    slurm.ask("scancel", "--signal=USR1", "--name=direct")
    code = step.wait(timeout=LOADED_S)
    told = (tmp_path / "output").read_text()
    assert code == 75, told
    assert "4 rank(s): pp=1 x dp=2 x cp=1 x tp=2" in told
    assert step_folder(tmp_path, metrics(tmp_path)[-1]["step"]).is_dir(), told
    assert "Traceback" not in told


def test_scancel_ends_a_job_saved_and_for_good(slurm: Slurm, tmp_path: Path) -> None:
    python = stand_in(tmp_path, 'trap "exit 75" TERM; echo training; sleep 600 & wait')
    job = submit(slurm, tmp_path, f"cluster.python={python}")
    wait_for_text(tmp_path / "default" / "slurm" / f"{job}.log", "training")
    slurm.ask("scancel", job)
    told = wait_for_text(tmp_path / "default" / "slurm" / f"{job}.log", "not requeued")
    assert f"SLURM ends job {job}: waiting for the ranks to save." in told
    assert f"job {job} was cancelled and has saved at step 0: not requeued; submit its script again to go on." in told
    assert slurm.wait(job, "CANCELLED", seconds=LOADED_S) == "CANCELLED"
    assert slurm.field(job, "Restarts") == "0"


def test_tasks_of_an_array_are_runs_of_their_own(slurm: Slurm, tmp_path: Path) -> None:
    """Each with its configuration, behind prologue and container; the ends of a ladder are not requeued."""
    python = stand_in(tmp_path, f'echo "$MARK $WRAPPED $*" > {tmp_path}/told-$SLURM_ARRAY_TASK_ID; echo run; exit 17')
    job = submit(
        slurm, tmp_path, 'cluster.array=["train.seed=1","train.seed=2"]', 'cluster.srun=["--label"]',
        f"cluster.python={python}", 'cluster.prologue=["export MARK=seen"]', 'cluster.container="env WRAPPED=yes"',
    )  # fmt: skip
    for number in range(2):
        folder = tmp_path / f"default-{number}" / "slurm"
        told = wait_for_text(folder / f"{job}_{number}.log", "not requeued")
        assert "0: run" in told  # srun's --label
        assert "was stopped by the stability ladder (code 17, at step 0): not requeued." in told
        words = (tmp_path / f"told-{number}").read_text().split()
        assert words[:2] == ["seen", "yes"]
        assert f"--config-dir={folder}" in words
        assert "cluster.kind=torchrun" in words
        assert f"seed: {number + 1}\n" in (folder / "job.yaml").read_text()
    slurm.wait(f"{job}_0", "FAILED", seconds=LOADED_S)
    assert slurm.field(f"{job}_0", "ExitCode") == "17:0"


def test_a_refusal_of_sbatch_is_one_line(slurm: Slurm, tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path, "cluster=slurm", "run.device=cpu", "cluster.partition=nowhere"), cwd=REPO,
        env=slurm_environment(slurm), capture_output=True, text=True, timeout=LOADED_S, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "job.sh is written, but sbatch refuses it: " in done.stderr
    assert "invalid partition specified: nowhere" in done.stderr


@pytest.mark.skipif(os.environ.get("TRIMARAN_SOAK") != "1", reason="takes minutes: TRIMARAN_SOAK=1 plays it")
def test_a_time_limit_is_foreseen(slurm: Slurm, tmp_path: Path) -> None:
    """SLURM's own warning, and a limit of a minute; the job goes on in another one, and is cancelled there."""
    corpus(tmp_path)
    more = ("parallel.dp=2", "train.steps=100000", "cluster.time='1'", "cluster.warn_s=20", "checkpoint.interval=0")
    job = submit(slurm, tmp_path, "cluster.nodes=2", *more)
    slurm.hurry(job, 1, LOADED_S)
    told = log(tmp_path, job)
    assert "was asked to stop and has saved at step" in told or "has run out of time and has saved" in told
    saved = metrics(tmp_path)[-1]["step"]
    assert step_folder(tmp_path, saved).is_dir(), told
    wait_for_step(tmp_path, saved + 1, lambda: log(tmp_path, job))
    slurm.ask("scancel", job)
    wait_for_text(tmp_path / "default" / "slurm" / f"{job}.log", "was cancelled and has saved")
    assert f"at step {saved}" in log(tmp_path, job)
    assert slurm.wait(job, "CANCELLED", seconds=LOADED_S) == "CANCELLED"
    time.sleep(1)
    assert slurm.field(job, "Restarts") == "1"
