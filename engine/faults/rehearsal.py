"""Turns the plan of a configuration into faults of this run; does nothing when there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.data.build import DataBundle
from engine.faults.injector import Injector
from engine.faults.plan import read_plan
from engine.faults.poison import PoisonedSamples
from engine.flight.recorder import FLIGHT, attempt
from engine.mesh import Axis
from engine.step import Stepper


def rehearse(
    plan: list[Any], world: Axis, folder: Path, stepper: Stepper, data: DataBundle, notice: Callable[[str], None]
) -> DataBundle:
    """Arm the faults of `plan` on this rank and say so through `notice`; return `data`, spoilt as it says."""
    faults = read_plan(plan, world.size)
    for fault in faults:
        notice(f"FAULT ON PURPOSE: {fault.describe()}")
    poison = [fault for fault in faults if fault.what == "poison"]
    armed = len(poison) < len(faults)
    injector = Injector(faults, world.rank, attempt(), folder / "checkpoints", stepper) if armed else None
    FLIGHT.listener = None if injector is None else injector.on_phase
    return replace(data, train=PoisonedSamples(data.train, poison)) if poison else data
