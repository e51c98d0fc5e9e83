"""What was measured, as a table on screen and as Markdown rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

COLUMNS = ("measured", "against", "Trimaran", "the other", "ratio (min to max)")


class Row:
    """One line of a table: what was measured, then numbers with units; ratios above 1 mean that Trimaran is better."""

    def __init__(self, *cells: str) -> None:
        self.cells = cells


def seconds(value: float) -> str:
    """Write a duration with three significant digits and a fitting unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def spread(ratios: Sequence[float], median: float) -> str:
    """Write the median of paired ratios with their range."""
    return f"{median:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def machine() -> str:
    """Describe where the numbers come from: processor, cores, torch, and how busy it was."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return f"{processor()}, {cores} cores, torch {torch.__version__}, load {load:.1f} before"


def processor() -> str:
    """Return the processor's name as Linux tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def show(title: str, columns: Sequence[str], rows: Sequence[Row], console: Console) -> None:
    """Print a rich table."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 or column == "against" else "right")
    for row in rows:
        table.add_row(*row.cells)
    console.print(table)


def to_markdown(title: str, columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Return the table as Markdown, ready for the README."""
    sides = ["---" if number == 0 or column == "against" else "---:" for number, column in enumerate(columns)]
    lines = [f"Measured on {title}.", "", _line(columns), _line(sides)]
    return "\n".join([*lines, *(_line(row.cells) for row in rows)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
