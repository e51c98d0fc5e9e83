"""What must be refused, and in one line."""

from __future__ import annotations

from collections.abc import Callable

from engine.errors import EngineError


def refusal(body: Callable[..., object], *arguments: object) -> str:
    """Return the one line with which `body(*arguments)` refuses; AssertionError when it does not."""
    line = refusal_if_any(body, *arguments)
    assert line is not None, f"it was taken: {arguments}"
    return line


def refusal_if_any(body: Callable[..., object], *arguments: object) -> str | None:
    """Return the one line with which `body(*arguments)` refuses, None when it does not."""
    try:
        body(*arguments)
    except EngineError as error:
        line = str(error)
    else:
        return None
    assert len(line.splitlines()) == 1, line
    return line
