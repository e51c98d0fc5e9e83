"""Jobs as a user submits them, and what they leave."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from tests.slurm.daemons import Slurm
from tests.system.runs import REPO, command, environment, metrics

LOADED_S = 240.0  # how long anything may take on a machine that does much besides


def slurm_environment(slurm: Slurm) -> dict[str, str]:
    return environment(SLURM_CONF=slurm.environment["SLURM_CONF"])


def submit(slurm: Slurm, folder: Path, *overrides: str) -> str:
    """Submit a tiny run in `folder`; return the number of the job."""
    done = subprocess.run(
        command(folder, "cluster=slurm", "run.device=cpu", "cluster.cpus_per_node=2", *overrides),
        cwd=REPO, env=slurm_environment(slurm), capture_output=True, text=True, timeout=LOADED_S, check=False,
    )  # fmt: skip
    number = re.search(r"job (\d+) is submitted", done.stdout)
    assert number is not None, done.stdout + done.stderr
    return number[1]


def log(folder: Path, job: str) -> str:
    path = folder / "default" / "slurm" / f"{job}.log"
    return path.read_text() if path.exists() else ""


def wait_for_step(folder: Path, step: int, told: object = "") -> None:
    """Wait until metrics.jsonl has the record of a step."""
    deadline = time.monotonic() + LOADED_S
    while not any(record.get("step", 0) >= step for record in metrics(folder)):
        assert time.monotonic() < deadline, f"no step {step}: {told() if callable(told) else told}"
        time.sleep(0.1)


def wait_for_text(path: Path, text: str) -> str:
    """Wait until a file has `text`; return all that it has."""
    deadline = time.monotonic() + LOADED_S
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline, f"no {text!r} in {path}"
        time.sleep(0.1)
    return path.read_text()


def stand_in(folder: Path, training: str) -> Path:
    """Return an interpreter that runs the lines of shell `training` in place of launch/pretrain.py, in a blink."""
    path = folder / "python"
    path.write_text(f'#!/bin/bash\ncase "$1" in *pretrain.py) ;; *) exec {sys.executable} "$@";; esac\n{training}\n')
    path.chmod(0o755)
    return path
