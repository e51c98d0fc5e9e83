"""Play the fault matrix: python -m tests.soak.matrix [--quick] [--only F1,F12] [--seed N] [--list]

Prints a line per case and a table at the end; exits with 1 when a case did not end as it must.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from tests.soak.cases import Case, cases
from tests.soak.stage import Stage


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    chosen = [case for case in cases(options.seed) if _is_chosen(case, options)]
    if options.list:
        for case in chosen:
            print(f"{case.row:<4} {case.layout:<12} {case.title}")
        print(f"{len(chosen)} cases")
        return 0
    failures, seconds = [], defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        for number, case in enumerate(chosen, 1):
            begin = time.monotonic()
            failure = play(case, Path(folder))
            seconds[case.row].append(time.monotonic() - begin)
            verdict = "ok    " if failure is None else "FAILED"
            print(f"{number:>3}/{len(chosen)} {verdict} {case.row:<4} {case.layout:<12} {case.title} "
                  f"({seconds[case.row][-1]:.1f} s)", flush=True)  # fmt: skip
            if failure is not None:
                failures.append(case)
                print(failure, flush=True)
    _print_table(chosen, failures, seconds, options.seed)
    return 1 if failures else 0


def play(case: Case, root: Path) -> str | None:
    """Play one case below `root`; return what went wrong."""
    stage = Stage(root, case.layout, case.limit_s)
    try:
        stage.reference(case.layout)
        case.play(stage)
    except AssertionError as error:
        return str(error)
    return None


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one case for each of the main rows")
    parser.add_argument("--only", default="", help="rows, separated by commas, such as F1,F12")
    parser.add_argument("--layout", default="", help="cases of this layout only")
    parser.add_argument("--seed", type=int, default=0, help="draws ranks and moments (0)")
    parser.add_argument("--list", action="store_true", help="show the cases, play none")
    return parser.parse_args(arguments)


def _is_chosen(case: Case, options: argparse.Namespace) -> bool:
    rows = options.only.split(",") if options.only else [case.row]
    return case.row in rows and options.layout in ("", case.layout) and (case.quick or not options.quick)


def _print_table(chosen: list[Case], failures: list[Case], seconds: dict[str, list[float]], seed: int) -> None:
    print(f"\nseed {seed}\n{'row':<5}{'cases':>6}{'as they must':>14}{'longest s':>11}")
    for row in dict.fromkeys(case.row for case in chosen):
        count = sum(case.row == row for case in chosen)
        bad = sum(case.row == row for case in failures)
        print(f"{row:<5}{count:>6}{count - bad:>14}{max(seconds[row]):>11.1f}")
    print(f"{'all':<5}{len(chosen):>6}{len(chosen) - len(failures):>14}")


if __name__ == "__main__":
    sys.exit(main())
