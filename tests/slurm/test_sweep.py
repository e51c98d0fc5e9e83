"""A sweep as an array of SLURM's jobs (hydra-submitit-launcher): preempted, put back into the queue, and finished."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.sweeps.points import read_points
from tests.slurm.daemons import Slurm
from tests.slurm.jobs import LOADED_S, slurm_environment
from tests.system.runs import REPO, command, corpus, metrics

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="hydra-submitit-launcher is not installed"),
]
# submitit takes any stop within 10 minutes of the limit for time that ran out, not for a preemption
_SLURM = [
    "hydra/launcher=submitit_slurm", "hydra.launcher.partition=debug", "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.timeout_min=60", "hydra.launcher.signal_delay_s=20",
]  # fmt: skip


def wait_until(ready: Callable[[], bool], sweep: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LOADED_S
    while not ready():
        assert sweep.poll() is None or ready(), sweep.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_a_preempted_job_goes_on_and_a_failed_one_stops_no_other(slurm: Slurm, tmp_path: Path) -> None:
    corpus(tmp_path)
    words = command(
        tmp_path, *_SLURM, "run.name=lr", "run.device=cpu", "optim.lr=1e-3,3e-4", "train.steps=60",
        "checkpoint.interval=0", "train.log_interval=50", "run.max_restarts=0",
        "+faults=[{what: sleep, rank: 0, step: 8, steps: 8, seconds: 1, attempt: 0}]",  # time to be preempted in
        "-m",
    )  # fmt: skip
    sweep = subprocess.Popen(
        words, cwd=REPO, env=slurm_environment(slurm), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    folder = tmp_path / "sweeps" / "lr"
    preempted, other = folder / "optim.lr=0.001", folder / "optim.lr=0.0003"

    def step_of(point: Path) -> int:
        return max((record["step"] for record in metrics(folder, point.name)), default=0)

    try:
        wait_until(lambda: step_of(preempted) > 5 and step_of(other) > 0, sweep)
        job = json.loads((preempted / "point.json").read_text())["where"].rpartition(" ")[2]
        slurm.ask("scancel", "--signal=USR2", job)
        wait_until(lambda: "waits to go on" in (preempted / "point.json").read_text(), sweep)
        saved = sorted(path.name for path in (preempted / "checkpoints").glob("step_*"))
        assert saved
        slurm.hurry(job, 1, LOADED_S)
        output, _ = sweep.communicate(timeout=LOADED_S)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, output
    assert [point.code for point in read_points(folder)] == [0, 0]
    for point in (preempted, other):
        assert [record["step"] for record in metrics(folder, point.name) if "loss" in record] == [*range(1, 61)]
    assert len((preempted / "starts.jsonl").read_text().splitlines()) == 2
