"""Look at everything a run needs before hours are burnt.

    python launch/doctor.py [group=option ...] [key=value ...]     as pretrain: starts the ranks on this machine
    torchrun [...] launch/doctor.py [...]                          uses the ranks it is given, on all nodes

Prints versions, the device, what runs each operation in each precision and why it is not something faster; then one
line a finding: ok, warning, or fault with what to do. device=cpu is short for run.device=cpu. Exit codes: 0 no faults,
3 at least one (torchrun makes its own 1 of it), 2 a mistake in the arguments.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from engine import __version__
from engine.config import Config
from engine.device import DTYPES, Device, local_rank, set_threads
from engine.mesh import join_world
from engine.ops import backend
from engine.preflight.finding import Finding
from engine.preflight.run import preflight
from launch.codes import BUG, DIED, DONE, FAULTS, HANG, Outcome
from launch.rank import is_rank, leave, run_rank
from launch.ranks import start_ranks
from launch.script import run_script
from launch.settings import repeat_flags, run_with_config

_RESULT = "TRIMARAN_DOCTOR"  # set for ranks that this script has started: the file for the number of faults


def examine(arguments: list[str]) -> int:
    """Be a rank where one was started, or have all that the configuration asks for; return the exit code."""
    words = [f"run.{word}" if word.startswith("device=") else word for word in arguments]
    given: list[tuple[Config, list[str]]] = []

    def keep(config: Config, overrides: list[str]) -> Outcome:
        given.append((config, overrides))
        return Outcome(DONE)

    code = run_with_config(keep, words)
    for config, overrides in given:  # outside of Hydra, which would end the process with the code
        code = _work(config) if is_rank() else _launch(config, [*repeat_flags(words), *overrides])
    return code


def _launch(config: Config, words: list[str]) -> int:
    parallel = config.parallel
    replica = parallel.tp * parallel.pp * parallel.cp
    gpus = 0 if config.run.device == "cpu" else torch.cuda.device_count()
    ranks = max(1, replica * (parallel.dp or max(1, gpus // max(1, replica))))
    if ranks == 1:
        return _code(_look(config))
    with tempfile.TemporaryDirectory(prefix="trimaran-") as folder:
        result = Path(folder) / "faults"
        os.environ[_RESULT] = str(result)
        try:
            outcome = start_ranks([sys.executable, str(Path(__file__).resolve()), *words], ranks)
        finally:
            del os.environ[_RESULT]
        if outcome.code == DONE and result.exists():
            return _code(json.loads(result.read_text()))
        return FAULTS if outcome.code in (BUG, DIED, HANG) else outcome.code  # a rank did not come through: it is said


def _work(config: Config) -> int:
    def work() -> int:
        faults = _look(config)
        if _RESULT not in os.environ:
            return _code(faults)
        if int(os.environ["RANK"]) == 0:
            Path(os.environ[_RESULT]).write_text(json.dumps(faults))
        return DONE

    return leave(run_rank(work))


def _code(faults: int) -> int:
    return FAULTS if faults else DONE


def _look(config: Config) -> int:
    """Be one of the ranks; return the number of faults."""
    device = Device.pick(config.run.device, local_rank())
    set_threads(config.run.threads, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    join_world(device, config.parallel.timeout_s)
    try:
        is_first = dist.get_rank() == 0

        def say(finding: Finding) -> None:
            if is_first:
                print(finding, flush=True)

        if is_first:
            _describe(device)
        return preflight(config, device, say, alone=_RESULT in os.environ or not is_rank())
    finally:
        dist.destroy_process_group()


def _describe(device: Device) -> None:
    """Print what this machine would train with."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"trimaran {__version__}, Python {platform.python_version()}, torch {torch.__version__}")
    console.print(f"device {device.describe()}, {device.backend}")
    table, reasons = kernels(device.torch_device.type)
    console.print(table)
    for reason in reasons:
        console.print(reason)


def kernels(device_type: str) -> tuple[Table, list[str]]:
    """Return what runs each op by precision, and a line for each reason why a backend that comes first does not."""
    table = Table("operation", *DTYPES, title=f"what runs on {device_type}", title_justify="left")
    reasons: dict[str, set[str]] = {}
    active = {name: backend.table(device_type, dtype) for name, dtype in DTYPES.items()}
    for rows in zip(*active.values(), strict=True):
        table.add_row(rows[0].op, *(row.backend for row in rows))
        for row in rows:
            for name, reason in row.others.items():
                reasons.setdefault(f"not {name}: {reason}", set()).add(row.op)
    return table, [f"{reason} ({', '.join(sorted(ops))})" for reason, ops in reasons.items()]


def main(arguments: list[str] | None = None) -> int:
    return run_script(examine, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
