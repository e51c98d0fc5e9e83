"""Make a report of a run, or of several side by side: python launch/report.py run=runs/default [RUN ...] [output=FILE]

Each RUN is a run folder, or a folder of runs, such as a sweep's. The report is one HTML file that needs no network;
without output it is report.html in the folder that was named, or of several runs in the folder they share.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import ConfigError, EngineError, did_you_mean, explained
from engine.monitor.report.page import render
from engine.monitor.report.read import find_runs, read_run

_KEYS = ("run", "output")


def read_settings(arguments: list[str]) -> tuple[list[Path], Path]:
    """Return the folders named and the file to write; ConfigError for anything else."""
    folders, output = [], None
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or Path(argument).is_dir():
            key, value = "run", argument
        if key in _KEYS and not value:
            raise ConfigError(f"{key}= names nothing; write run=runs/default or output=report.html, say.")
        if key not in _KEYS:
            raise ConfigError(
                f"unknown setting '{argument}'; write run=FOLDER or output=FILE.{did_you_mean(key, _KEYS)}"
            )
        if key == "run":
            folders.append(Path(value))
        else:
            output = Path(value)
    if not folders:
        raise ConfigError("no run is named; write run=runs/default, say.")
    return folders, output or _shared(folders) / "report.html"


def _shared(folders: list[Path]) -> Path:
    """Return the innermost folder that holds all of them, as they were written where that can be."""
    if len(folders) == 1:
        return folders[0]
    return Path(os.path.commonpath([folder.resolve() for folder in folders]))


def write_report(folders: list[Path], output: Path) -> None:
    """Write the report of the runs in `folders`, whole or not at all."""
    page = render([read_run(run) for run in find_runs(folders)], time.time())
    aside = output.with_name(f"{output.name}.tmp")
    with explained(f"{output} cannot be written", "write output=FILE somewhere else"):
        aside.write_text(page, encoding="utf-8")
        os.replace(aside, output)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        folders, output = read_settings(arguments)
        write_report(folders, output)
    except EngineError as error:
        print(f"trimaran: {error}", file=sys.stderr)
        return 2
    print(f"report {output}: {output.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
