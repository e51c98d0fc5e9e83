"""The table of a sweep: what each point set, how far it came, and why it ended."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.monitor.report.figures import results
from engine.monitor.report.html import DASH, fixed, number
from engine.monitor.report.read import read_run
from launch.codes import DONE, in_words
from launch.sweeps.points import ENDED, LOST, RUNNING, Point, read_points

_COLOURS = {"done": "green", "failed": "red", "lost": "red", "running": "cyan"}


def print_table(folder: Path) -> None:
    """Print a line for each point of the sweep in `folder`; ConfigError where there is no sweep."""
    points = read_points(folder)
    keys = list(dict.fromkeys(_key(override) for point in points for override in point.overrides))
    table = Table(title=f"sweep {folder}", title_justify="left")
    for key in keys:
        table.add_column(key)
    for head in ("step", "loss", "valid loss", "tokens/s"):
        table.add_column(head, justify="right")
    table.add_column("state")
    table.add_column("why", overflow="fold")
    for point in points:
        values = dict(override.split("=", 1) for override in point.overrides if "=" in override)
        state, why = judge(point)
        table.add_row(
            *(Text(values.get(key, DASH)) for key in keys), *_numbers(point),
            Text(state, style=_COLOURS.get(state, "")), Text(why),
        )  # fmt: skip
    is_terminal = sys.stdout.isatty()
    console = Console(width=None if is_terminal else 200, highlight=False)
    console.print(table)
    console.print(Text(f"each is a run of its own: python launch/report.py {folder}"), soft_wrap=True)


def judge(point: Point) -> tuple[str, str]:
    """Return a word for where a point is, and why."""
    if point.state == RUNNING and not point.alive():
        return LOST, f"no sign of life since it was started on {point.where}"
    if point.state != ENDED:
        return point.state, point.reason or (point.where if point.state == RUNNING else "")
    if point.code == DONE:
        return ("stopped" if point.reason else "done"), point.reason
    said = "" if point.code is None else in_words(point.code)
    return "failed", f"{point.reason or said} (exit code {point.code})"


def objective(point: Point) -> float | None:
    """Return what a sweeper minimises: the last validation loss, else the mean loss of the last 20 steps."""
    found = results(read_run(point.folder))
    return found.loss if found.valid is None else found.valid


def _numbers(point: Point) -> list[str]:
    run = read_run(point.folder)
    found, losses = results(run), run.steps.values("loss")
    loss = float(losses[-1]) if len(losses) else None
    return [f"{run.step:,}", fixed(loss), fixed(found.valid), number(found.tokens_per_s, 3)]


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")
