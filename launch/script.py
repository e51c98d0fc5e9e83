"""What entry points without Hydra share: their help page, and mistakes answered in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable

from engine.errors import EngineError


def exit_code(task: Callable[[], int | None]) -> int:
    """Run `task` and return its code, 0 when it has none, or say in one line why it cannot be done and return 2."""
    try:
        return task() or 0
    except EngineError as error:
        print(f"trimaran: {error}", file=sys.stderr)
        return 2


def run_script(task: Callable[[list[str]], int | None], page: str | None, arguments: list[str] | None) -> int:
    """Run `task` on `arguments` (None: the command line), or print `page` where they ask for help; return the code."""
    given = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(given):
        print(page)
        return 0
    return exit_code(lambda: task(given))
