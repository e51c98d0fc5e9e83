"""Show a sweep again: python launch/sweep.py FOLDER

FOLDER is a sweep's, such as runs/sweeps/lr. Of each point, a run of its own in there: what it set, its last loss and
validation loss, its tokens per second, whether it is done, and why it ended.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import ConfigError
from launch.script import run_script
from launch.sweeps.table import print_table


def show(arguments: list[str]) -> None:
    """Print the table of the one folder that is named; ConfigError for anything else."""
    if len(arguments) != 1:
        raise ConfigError("name one folder of a sweep, such as python launch/sweep.py runs/sweeps/lr.")
    print_table(Path(arguments[0]))


def main(arguments: list[str] | None = None) -> int:
    return run_script(show, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
