"""Say once, in plain words, why the ranks ended, and which exit code that makes."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from torch.distributed.elastic.agent.server.api import RunResult
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from engine.flight.failures import describe_hang
from engine.flight.reader import RankRecord, read_records
from engine.monitor import attempts
from launch.codes import BUG, DIED, DONE, HANG, LADDER_STOP, USER_ERROR

# What explains a failed run, best first. A rank that hangs does not hear that it should end and is killed in the end,
# so a time-out says more than a signal does. `ended` ranks were stopped by the agent after a peer had failed.
_KINDS = ("user", "stop", "bug", "memory", "hang", "signal", "exit", "echo", "ended")
_ASKED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # batch systems send the others to ranks not yet listening
_MEMORY_ADVICE = (
    "write a smaller train.micro_batch, parallel.recompute=full, or more parallel.tp or parallel.pp; on a CPU, "
    "ulimit -v and the memory of the container count too"
)


def explain(result: RunResult, folder: Path | None, stopping: bool) -> int:
    """Print the failure that explains the others, if any, and note it in the run's `folder`; return the exit code.

    In `folder` the flight records are; `stopping` says that the ranks had been asked to stop.
    """
    if not result.is_failed():
        return DONE
    code, text = _find_cause(result, folder, stopping)
    first, *page = text.strip().splitlines() or [""]
    if page:  # a traceback
        print(text, file=sys.stderr, end="")
    elif first:
        print(f"trimaran: {first}", file=sys.stderr, flush=True)
    if folder is not None and first:
        attempts.note(folder, attempts.EXPLAINED, code=code, why=" ".join([first, *page[-1:]]))
    return code


def _find_cause(result: RunResult, folder: Path | None, stopping: bool) -> tuple[int, str]:
    """Return the exit code and what explains it: a line, or a line and a traceback; nothing after a request to stop."""
    records = read_records(folder) if folder is not None else []
    alive = {record.rank: record.alive for record in records}  # of two that were killed, the first died by itself
    rank, failure = min(
        result.failures.items(),
        key=lambda item: (_precedence(item[1]), _moment(item[1], alive.get(item[0], 0.0)), item[0]),
    )
    kind = _kind(failure)
    if stopping and kind in ("ended", "echo"):
        return DONE, ""  # the signal reached ranks that had not begun to train: there is nothing to save
    if kind in ("user", "stop"):
        return (USER_ERROR if kind == "user" else LADDER_STOP), failure.message
    if kind == "memory":
        last = failure.message.strip().splitlines()[-1]
        return BUG, f"rank {rank} ran out of memory{_doing(records, rank)}: {last}; {_MEMORY_ADVICE}."
    if folder is not None and _was_locked(failure, records, rank):
        return HANG, describe_hang(folder)
    if kind == "hang":
        return HANG, failure.message.strip().splitlines()[-1]
    if kind in ("bug", "echo"):
        return (BUG if kind == "bug" else DIED), f"rank {rank} failed{_doing(records, rank)}:\n{failure.message}"
    if kind == "exit":
        return DIED, f"rank {rank} exited with code {failure.exitcode}{_doing(records, rank)}."
    hint = _HINTS.get(-failure.exitcode, "")
    return DIED, f"rank {rank} was ended by {failure.signal_name()}{hint}{_doing(records, rank)}."


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
