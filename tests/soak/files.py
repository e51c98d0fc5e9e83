"""Faults of files, case by case: python -m tests.soak.files [--only F5].

Checkpoints, corpora, tokenizers, configurations and disks that are damaged, hostile or full. Prints a table of what
was done and what came of it; exit code 1 when a case did not end as it must. Some twenty of the cases are whole runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.soak import checkpoint_files, data_files, file_runs

Case = Callable[[Path], str]  # is given an empty folder and returns what came of it; raises when it must not be
CASES: list[tuple[str, str, Case]] = [*checkpoint_files.CASES, *data_files.CASES, *file_runs.CASES]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", metavar="FAULT", help=f"one of {', '.join(sorted({case[0] for case in CASES}))}")
    only = parser.parse_args(arguments).only
    print("| fault | case | what came of it | s |\n|---|---|---|---|")
    failed = 0
    for fault, name, case in CASES:
        if only not in (None, fault):
            continue
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="soak-files-") as folder:
            try:
                outcome = case(Path(folder))
            except Exception:
                failed += 1
                outcome = "**FAILED**"
                traceback.print_exc()
        print(f"| {fault} | {name} | {outcome} | {time.monotonic() - begin:.1f} |", flush=True)
    print(f"{failed} failed" if failed else "all ended as they must")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
