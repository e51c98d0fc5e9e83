"""Make a ready workspace in Weights & Biases: python launch/dashboard.py project=trimaran [entity=NAME] [name=TITLE]

The workspace has a section for each kind of metric, over steps and over consumed tokens. It needs a login (`wandb
login`) and the package wandb-workspaces. `python launch/dashboard.py metrics` prints every metric instead: its name in
wandb, its key in metrics.jsonl, and what it means.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.text import Text

from engine.errors import ConfigError, did_you_mean
from engine.monitor.metrics import METRICS
from launch.script import run_script

_KEYS = ("project", "entity", "name")


def list_metrics() -> None:
    """Print the metric tree."""
    console = Console(highlight=False)
    width = max(len(metric.dashboard) for metric in METRICS.values())
    for metric in METRICS.values():
        name, key = (metric.dashboard.ljust(width), "bold"), (f"  [{metric.key}]", "dim")
        console.print(Text.assemble(name, f"  {metric.meaning}", key), soft_wrap=True)


def read_settings(arguments: list[str]) -> dict[str, str]:
    """Read key=value arguments; ConfigError for anything else."""
    settings = {"project": "trimaran", "entity": "", "name": "Trimaran"}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in _KEYS or not value:
            raise ConfigError(f"unknown setting '{argument}'; write project=NAME.{did_you_mean(key, _KEYS)}")
        settings[key] = value
    return settings


def run(arguments: list[str]) -> None:
    if arguments == ["metrics"]:
        list_metrics()
        return
    settings = read_settings(arguments)
    from engine.monitor.wandb_workspace import make_workspace  # wandb takes a second to load

    print(f"workspace {make_workspace(**settings)}")


def main(arguments: list[str] | None = None) -> int:
    return run_script(run, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
