"""Start the ranks of a run on this machine, pass signals on to them, and say once what went wrong.

Ranks are processes of torch's elastic agent, the one inside torchrun, so a rank sees the same environment either
way. The agent runs in a thread because in the main thread it would take the signals and end every rank with them.
A rank that fails leaves a report in the file the agent names; the launcher shows the one report that explains
the others, instead of the agent's page about child processes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from launch.rank import BUG, INTERRUPTED, LAUNCHER, USER_ERROR

# glibc maps every tensor above 32 MiB afresh and returns it to the system when freed, so each step pays for zeroing all
# its pages again; raised thresholds keep them in the heap (SwiGLU of 45 M elements: 194 -> 51 ms).
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}

_GRACE_S = 15  # how long ranks may outlive a failed peer: a blocked collective does not hear SIGTERM


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the exit code, and whether a signal asked it to stop early."""

    code: int
    stopped: bool = False


def start_ranks(command: list[str], count: int) -> Outcome:
    """Run `count` processes of `command` as ranks on this machine until all have ended.

    Ctrl-C, SIGTERM and SIGHUP reach each rank once, as SIGTERM: it finishes its step, saves and returns 0, and so
    do we. A second Ctrl-C kills the ranks. A failure is printed on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="trimaran-") as folder, _environment(count), _silence(), _Signals() as seen:
        agent = _Agent(command, count, folder)
        told: set[int] = set()
        while agent.is_alive():
            agent.join(0.1)
            if seen.interrupts > 1:
                agent.send(signal.SIGKILL, agent.pids())
                agent.join()
                return Outcome(INTERRUPTED, stopped=True)
            if seen.stop:
                fresh = agent.pids() - told
                agent.send(signal.SIGTERM, fresh)
                told |= fresh
        return Outcome(_explain(agent.result(), seen.stop), seen.stop)


class _Agent(threading.Thread):
    """torch's elastic agent for one machine, without restarts, in a thread of its own."""

    def __init__(self, command: list[str], count: int, folder: str) -> None:
        super().__init__(name="elastic-agent")
        rendezvous = RendezvousParameters(
            backend="c10d", endpoint="localhost:0", run_id=uuid.uuid4().hex, min_nodes=1, max_nodes=1,
            local_addr="localhost", is_host=True,
        )  # fmt: skip
        self._rendezvous = get_rendezvous_handler(rendezvous)
        spec = WorkerSpec(
            role="rank", local_world_size=count, entrypoint=command[0], args=tuple(command[1:]),
            rdzv_handler=self._rendezvous, max_restarts=0, monitor_interval=0.1, local_addr="localhost",
        )  # fmt: skip
        self._agent = LocalElasticAgent(spec, DefaultLogsSpecs(log_dir=folder), shutdown_timeout=_GRACE_S)
        self._result: RunResult | None = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._agent.run()
        except BaseException as error:  # carried over to the main thread by result()
            self._error = error
        finally:
            self._rendezvous.shutdown()

    def result(self) -> RunResult:
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def pids(self) -> set[int]:
        """Return the process ids of the ranks started so far."""
        return {int(worker.id) for worker in self._agent.get_worker_group().workers if worker.id is not None}

    @staticmethod
    def send(number: signal.Signals, pids: set[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class _Signals:
    """Counts what this process is asked, instead of dying of it."""

    def __init__(self) -> None:
        self.stop, self.interrupts = False, 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started with nohup: the terminal may close, the run goes on
            self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        self.interrupts += number == signal.SIGINT


@contextlib.contextmanager
def _environment(count: int) -> Iterator[None]:
    """Set what the ranks inherit and a user has not chosen."""
    cores = len(os.sched_getaffinity(0))
    wanted = {
        # More threads than cores make OpenMP spin against itself.
        "OMP_NUM_THREADS": str(max(1, cores // count)),
        **ALLOCATOR,
    }
    fresh = {key: value for key, value in wanted.items() if key not in os.environ} | {LAUNCHER: str(os.getpid())}
    os.environ.update(fresh)
    try:
        yield
    finally:
        for key in fresh:
            os.environ.pop(key, None)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the agent's log lines away: what they report is printed here, in fewer words."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)


def _explain(result: RunResult, stopping: bool) -> int:
    """Print the failure that explains the others, if any; return the exit code."""
    if not result.is_failed():
        return 0
    rank, failure = min(result.failures.items(), key=lambda item: (_precedence(item[1]), item[0]))
    kind = _kind(failure)
    if stopping and kind in ("ended", "echo"):
        return 0  # the signal reached ranks that had not begun to train: there is nothing to save
    if kind == "user":
        print(f"trimaran: {failure.message}", file=sys.stderr)
        return USER_ERROR
    if kind in ("bug", "echo"):
        print(f"rank {rank} failed:\n{failure.message}", file=sys.stderr, end="")
    elif kind == "exit":
        print(f"trimaran: rank {rank} exited with code {failure.exitcode}.", file=sys.stderr)
    else:
        hint = _HINTS.get(-failure.exitcode, "")
        print(
            f"trimaran: rank {rank} was ended by {failure.signal_name()}{hint}; start the same command again to "
            "continue from the newest checkpoint.",
            file=sys.stderr,
        )
    return BUG


_HINTS: dict[int, str] = {
    signal.SIGKILL: " (out of memory?)",
    signal.SIGBUS: " (was a corpus or a checkpoint cut off while it was read, or is /dev/shm full?)",
}

# What explains a failed run, best first: `ended` ranks were stopped by the agent after a peer had failed.
_KINDS = ("user", "bug", "signal", "exit", "echo", "ended")


def _kind(failure: ProcessFailure) -> str:
    reported = failure.error_file_data.get("kind")
    if reported is not None:
        return str(reported)
    if failure.exitcode < 0:
        return "ended" if failure.exitcode == -signal.SIGTERM else "signal"
    return "exit"


def _precedence(failure: ProcessFailure) -> int:
    return _KINDS.index(_kind(failure))
