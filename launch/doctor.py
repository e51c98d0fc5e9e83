"""Say what this machine would train with: python launch/doctor.py [device=auto]

Versions, the device, and what runs each operation in each precision; below, why it is not something faster.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from engine import __version__
from engine.device import DTYPES, Device
from engine.errors import ConfigError
from engine.ops import backend
from launch.script import run_script


def read_device(arguments: list[str]) -> Device:
    """Read the one setting; raise ConfigError for anything else."""
    name = "auto"
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in ("device", "run.device") or not equals:  # the latter is what advice on devices says
            raise ConfigError(f"unknown setting '{argument}'; write device=auto, device=cpu or device=cuda.")
        name = value
    return Device.pick(name)


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


def examine(arguments: list[str]) -> None:
    """Print what this machine would train with."""
    device = read_device(arguments)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"trimaran {__version__}, Python {platform.python_version()}, torch {torch.__version__}")
    console.print(f"device {device.describe()}, {device.backend}")
    table, reasons = kernels(device.torch_device.type)
    console.print(table)
    for reason in reasons:
        console.print(reason)


def main(arguments: list[str] | None = None) -> int:
    return run_script(examine, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
