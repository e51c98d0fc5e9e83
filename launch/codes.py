"""The exit codes of a run, of its launcher and of its ranks alike."""

from __future__ import annotations

from dataclasses import dataclass

DONE = 0  # the run is done, or was asked to stop by Ctrl-C and has saved
BUG = 1  # an error that is not explained by any of the below
USER_ERROR = 2  # a mistake that one line explains
FAULTS = 3  # the doctor found what a run would stumble over
LADDER_STOP = 17  # the stability ladder came to its end: nobody should start it again unchanged
UNFINISHED = 75  # asked to stop by SIGTERM, SIGHUP or SIGUSR1, and has saved: start it again (EX_TEMPFAIL)
DIED = 76  # a rank died, or lost a peer that did
HANG = 124  # a rank did not come on within the time-out (as timeout(1) says it)
INTERRUPTED = 130  # a second Ctrl-C

RESTARTABLE = (BUG, DIED, HANG)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the exit code, and whether a signal asked it to stop early."""

    code: int
    stopped: bool = False


def in_words(code: int) -> str:
    """Return what an exit code says of a run."""
    return _WORDS.get(code, f"exit code {code}")


_WORDS = {
    DONE: "done", BUG: "an error", USER_ERROR: "a mistake in its settings", DIED: "a rank died", HANG: "a rank hung",
    LADDER_STOP: "stopped by the stability ladder", UNFINISHED: "asked to stop, and has saved",
    FAULTS: "faults were found", INTERRUPTED: "killed by Ctrl-C",
}  # fmt: skip
