"""Show what a step was trained on: python launch/show_batch.py run=runs/default step=340 [key=value ...]

Prints each sequence of the step's global batch, the worst first: its place in the sample order, its source and
documents, its loss under the newest weights before that step, and how its text begins.

Keys: run, step, timeline (null: after all rollbacks; 0: before the first one), show (sequences printed, 8; 0: all),
characters (of each, 300), device (auto, cpu, cuda).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.text import Text

from engine.device import Device
from engine.errors import ConfigError, did_you_mean
from engine.show_batch import Sequence, batch_of_step
from launch.script import run_script

NUMBERS = {"step": None, "timeline": None, "show": 8, "characters": 300}


def main(arguments: list[str]) -> int:
    return run_script(_show, __doc__, arguments)


def _show(arguments: list[str]) -> None:
    text, numbers = _read(arguments)
    device = Device.pick(text["device"]).torch_device
    step, timeline = numbers["step"], numbers["timeline"]
    if step is None:
        raise ConfigError("step is missing; write step=N, as in metrics.jsonl.")
    about, sequences = batch_of_step(Path(text["run"]), step, timeline, device)
    shown = sorted(sequences, key=lambda sequence: -sequence.loss)[: numbers["show"] or len(sequences)]
    _print(about, shown, len(sequences), numbers["characters"] or 0)


def _read(arguments: list[str]) -> tuple[dict[str, str], dict[str, int | None]]:
    text, numbers = {"run": "runs/default", "device": "auto"}, dict(NUMBERS)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in {*text, *numbers}:
            raise ConfigError(f"unknown setting '{argument}'; write key=value.{did_you_mean(key, [*text, *numbers])}")
        if key in text:
            text[key] = value
        elif not value.isdecimal():
            raise ConfigError(f"{key}={value} is not a whole number.")
        else:
            numbers[key] = int(value)
    return text, numbers


def _print(about: str, shown: list[Sequence], total: int, characters: int) -> None:
    console = Console()
    console.print(Text(about, style="bold"), soft_wrap=True)
    for sequence in shown:
        documents = ", ".join(map(str, sequence.documents))
        head = f"\nloss {sequence.loss:.4f}  place {sequence.position}  {sequence.source}, document {documents}"
        console.print(Text(head, style="cyan"), soft_wrap=True)
        console.print(Text(sequence.text[:characters]))
    if len(shown) < total:
        console.print(Text(f"\n{total - len(shown)} more sequences with a lower loss: show=0 prints all"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
