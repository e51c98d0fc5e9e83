"""In plain words: why the ranks of this machine ended, and which exit code that makes."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.agent.server.api import RunResult
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from engine.flight.failures import describe_hang
from engine.flight.reader import RankRecord, read_records
from launch.codes import BUG, DIED, DONE, HANG, LADDER_STOP, USER_ERROR

# What explains a failed run, best first. A rank that hangs does not hear that it should end and is killed in the end,
# so a time-out says more than a signal does. `ended` ranks were stopped by the agent after a peer had failed.
_KINDS = ("interrupt", "user", "stop", "bug", "memory", "hang", "signal", "exit", "echo", "ended")
_ASKED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # batch systems send the others to ranks not yet listening
_MEMORY_ADVICE = (
    "write a smaller train.micro_batch, parallel.recompute=full, or more parallel.tp or parallel.pp; on a CPU, "
    "ulimit -v and the memory of the container count too"
)


@dataclass(frozen=True)
class Ended:
    """How the ranks ended: the exit code, what kind of end it was, and the text, one line or a traceback, that says so.

    `stop` says that a signal had asked them to end, `interrupted` that a Ctrl-C had.
    """

    code: int
    kind: str = "done"
    text: str = ""
    stop: bool = False
    interrupted: bool = False

    @property
    def weight(self) -> int:
        """The smaller, the more an end explains those of others."""
        return _KINDS.index(self.kind) if self.kind in _KINDS else len(_KINDS)

    def in_short(self) -> str:
        """Return the text in one line, of a traceback the first and the last."""
        lines = self.text.removeprefix(line("")).splitlines()
        return " ".join(lines[:1] + lines[1:][-1:])

    def tell(self) -> None:
        """Print the text, if any, on stderr."""
        if self.text:
            print(self.text, file=sys.stderr, flush=True)


def line(text: str) -> str:
    """Return `text` as a line of the launcher's."""
    return f"trimaran: {text}"


def explain(result: RunResult, folder: Path | None, stopping: bool) -> Ended:
    """Return the failure that explains the others, if any.

    `folder` is the run's, where the flight records are; `stopping` says that the ranks had been asked to stop.
    """
    if not result.is_failed():
        return Ended(DONE)
    records = read_records(folder) if folder is not None else []
    alive = {record.rank: record.alive for record in records}  # of two that were killed, the first died by itself
    rank, failure = min(
        result.failures.items(),
        key=lambda item: (_precedence(item[1]), _moment(item[1], alive.get(item[0], 0.0)), item[0]),
    )
    kind = _kind(failure)
    if stopping and kind in ("ended", "echo"):
        return Ended(DONE)  # the signal reached ranks that had not begun to train: there is nothing to save
    if folder is not None and kind not in ("user", "stop", "memory") and _was_locked(failure, records, rank):
        return Ended(HANG, "hang", line(describe_hang(folder)))
    code, text = _describe(kind, failure, rank, _doing(records, rank))
    return Ended(code, kind, text)


def _describe(kind: str, failure: ProcessFailure, rank: int, doing: str) -> tuple[int, str]:
    """Return the exit code of a failure, and what to say of it."""
    if kind in ("user", "stop"):
        return USER_ERROR if kind == "user" else LADDER_STOP, line(failure.message)
    if kind == "memory":
        last = failure.message.strip().splitlines()[-1]
        return BUG, line(f"rank {rank} ran out of memory{doing}: {last}; {_MEMORY_ADVICE}.")
    if kind == "hang":
        return HANG, line(failure.message.strip().splitlines()[-1])
    if kind in ("bug", "echo"):
        return BUG if kind == "bug" else DIED, f"rank {rank} failed{doing}:\n{failure.message.rstrip()}"
    if kind == "exit":
        return DIED, line(f"rank {rank} exited with code {failure.exitcode}{doing}.")
    hint = _HINTS.get(-failure.exitcode, "")
    return DIED, line(f"rank {rank} was ended by {failure.signal_name()}{hint}{doing}.")


_HINTS: dict[int, str] = {
    signal.SIGKILL: " (out of memory?)",
    signal.SIGBUS: " (was a corpus or a checkpoint cut off while it was read, or is /dev/shm full?)",
}


def _was_locked(failure: ProcessFailure, records: list[RankRecord], rank: int) -> bool:
    """Say whether a rank that left with code 1 and no word was ended by the timer of its watchdog."""
    record = next((record for record in records if record.rank == rank), None)
    silent_s = time.monotonic() - record.alive if record is not None else 0.0
    return _kind(failure) == "exit" and failure.exitcode == 1 and silent_s > 4.0


def _doing(records: list[RankRecord], rank: int) -> str:
    """Return " in step 7, forward", or nothing where it is not known."""
    record = next((record for record in records if record.rank == rank), None)
    if record is None:
        return ""
    save = f" and {record.save[1]} of step {record.save[0]}" if record.save and record.save[1] != "save.done" else ""
    return f" in {record.describe()}{save}"


def _kind(failure: ProcessFailure) -> str:
    reported = failure.error_file_data.get("kind")
    if reported is not None:
        return str(reported)
    if failure.exitcode < 0:
        return "ended" if -failure.exitcode in _ASKED else "signal"
    return "exit"


def _moment(failure: ProcessFailure, otherwise: float) -> float:
    """Return when a rank reported its failure (monotonic seconds)."""
    return float(failure.error_file_data.get("moment", otherwise))


def _precedence(failure: ProcessFailure) -> int:
    return _KINDS.index(_kind(failure))
