"""Errors that teach: one line that says what is wrong, where, and what to write instead.

Every error a user can cause is an `EngineError`. Entry points in `launch/` print its text as one
line and exit with code 2; anything else is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class EngineError(Exception):
    """A mistake in what the user gave us; the text is one line with a way out."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(EngineError):
    """A configuration that cannot run."""


class DataError(EngineError):
    """A corpus, index or tokenizer that cannot be used."""


class CheckpointError(EngineError):
    """A checkpoint that cannot be written, verified or loaded."""


class StabilityStop(EngineError):
    """The ladder of responses to instability is at its end: a person has to decide."""


class LedgerError(EngineError):
    """A ledger that is not what a run wrote."""


class DiskError(EngineError):
    """A file or folder that the operating system refuses to read or write."""


@contextlib.contextmanager
def explained(what: str, advice: str) -> Iterator[None]:
    """Answer what the operating system refuses inside with one line: `what` it spoils, its reason, a way out."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{what}: {error.strerror or error}; {advice}.") from None


def printable(text: str) -> str:
    """Return `text` with line ends, terminal escapes and lone surrogates spelled out: it may quote a hostile file."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the option nearest to `word`, or the list of options."""
    options = sorted(options)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Choose from: {', '.join(options)}." if options else ""
