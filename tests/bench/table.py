"""What was measured, as a table on screen and as Markdown rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

COLUMNS = ("measured", "against", "Trimaran", "the other", "ratio (min to max)")


@dataclass(frozen=True)
class Row:
    """One line: ours and theirs with units; `ratio` above 1 means that Trimaran does better."""

    what: str
    peer: str
    ours: str
    theirs: str
    ratio: str

    @property
    def cells(self) -> tuple[str, ...]:
        return self.what, self.peer, self.ours, self.theirs, self.ratio


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


def show(title: str, rows: Sequence[Row], console: Console) -> None:
    """Print a rich table."""
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("measured", "against") else "right")
    for row in rows:
        table.add_row(*row.cells)
    console.print(table)


def to_markdown(title: str, rows: Sequence[Row]) -> str:
    """Return the table as Markdown, ready for the README."""
    lines = [f"Measured on {title}.", "", _line(COLUMNS), _line(["---", "---", "---:", "---:", "---:"])]
    return "\n".join([*lines, *(_line(row.cells) for row in rows)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
