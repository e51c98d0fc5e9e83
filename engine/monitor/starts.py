"""starts.jsonl: with what a run was started, each time: configuration, code version, machine. One line per start."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engine import __version__
from engine.config import Config
from engine.monitor.metrics import INFO, Record

STARTS = "starts.jsonl"


class StartsSink:
    """Notes each start of a run in `folder`; records and notices are for other sinks."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config

    def begin(self, step: int, total: int, timeline: int = 0) -> None:
        """Append how the run goes on after `step` steps; OSError when it cannot be written."""
        start = {
            "step": step, "time": time.time(), "ranks": dist.get_world_size() if dist.is_initialized() else 1,
            "environment": environment(self.config.run.device), "config": dataclasses.asdict(self.config),
        }  # fmt: skip
        file = os.open(self.folder / STARTS, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(file).st_size
            cut_off = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # by a crash: it must not spoil this line too
            os.write(file, b"\n" * cut_off + json.dumps(start).encode() + b"\n")
        finally:
            os.close(file)

    def log(self, record: Record) -> None:
        """Records are in metrics.jsonl."""

    def event(self, text: str, level: str = INFO) -> None:
        """Notices are for people who watch."""

    def close(self) -> None:
        """Nothing is held open."""


def environment(device: str) -> dict[str, Any]:
    """Return the versions and the machine of this process; `device` is run.device."""
    return {
        "trimaran": __version__,
        "code": code_version(),
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": _device(device),
        "host": socket.gethostname(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def code_version() -> str | None:
    """Return the git commit of this code, with -dirty when files differ from it; None outside a repository."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], cwd=Path(__file__).parent,
            capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None


def _device(device: str) -> str:
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} thread(s) a rank"
