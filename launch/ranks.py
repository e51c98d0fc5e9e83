"""Start the ranks of a run on this machine, pass signals on to them, and say once what went wrong.

Ranks are processes of torch's elastic agent, the one inside torchrun, so a rank sees the same environment either
way. The agent runs in a thread because in the main thread it would take the signals and end every rank with them.
Its own restarts are not used: a new agent brings a new store, without the addresses of dead ranks. A rank that fails
leaves a report in the file the agent names; the launcher shows the one report that explains the others
(launch/explain.py), instead of the agent's page about child processes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from engine.checkpoint.folder import saved_steps
from engine.flight.failures import HANG as HANG_KIND
from engine.flight.reader import read_records
from engine.monitor import attempts
from engine.stop_request import SignalListener
from launch.codes import BUG, DONE, INTERRUPTED, RESTARTABLE, UNFINISHED, Outcome
from launch.explain import explain
from launch.rank import LAUNCHER

# glibc maps every tensor above 32 MiB afresh and returns it to the system when freed, so each step pays for zeroing all
# its pages again; raised thresholds keep them in the heap (SwiGLU of 45 M elements: 194 -> 51 ms).
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}

ATTEMPT = "TRIMARAN_ATTEMPT"  # set for ranks: how often they were started before (engine.flight.recorder)

_AGAIN = "start the same command again to continue from the newest checkpoint."
_GRACE_S = 15  # how long ranks may outlive a failed peer: a blocked collective does not hear SIGTERM


def start_ranks(command: list[str], count: int, folder: Path | None = None, max_restarts: int = 0) -> Outcome:
    """Run `count` processes of `command` as ranks on this machine until all have ended.

    Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 reach each rank once, as SIGTERM: it finishes its step, saves and returns 0,
    and we `DONE` after Ctrl-C, else `UNFINISHED`. A second Ctrl-C kills the ranks. A failure is printed on stderr.

    `folder` is the run's. After a failure that another try may not meet, all ranks are started again, up to
    `max_restarts` times, unless the last tries have brought the run no further: what fails twice in one place will
    fail there again.
    """
    with _environment(count), _silence(), _Signals() as seen:
        furthest, stuck = _progress(folder), 0
        for attempt in range(max_restarts + 1):
            os.environ[ATTEMPT] = str(attempt)
            code = _run_once(command, count, folder, seen)
            if code not in RESTARTABLE or seen.stop:
                break
            if folder is not None:
                attempts.note(folder, "failed", code=code)
            reached = _progress(folder)
            stuck = 0 if reached > furthest else stuck + 1
            furthest = max(furthest, reached)
            refusal = _refuse_restart(code, stuck, attempt, max_restarts)
            if refusal is not None:
                _say(refusal)
                break
            _say(f"restart {attempt + 1} of at most {max_restarts}: all ranks start again, from the newest checkpoint.")
        asked_by_machine = seen.stop and not seen.interrupts
        return Outcome(UNFINISHED if code == DONE and asked_by_machine else code, seen.stop)


def _run_once(command: list[str], count: int, folder: Path | None, seen: _Signals) -> int:
    """Start the ranks once; return the exit code of their end."""
    with tempfile.TemporaryDirectory(prefix="trimaran-") as reports:
        agent = _Agent(command, count, reports)
        told: set[int] = set()
        while agent.is_alive():
            agent.join(0.1)
            if seen.interrupts > 1:
                agent.send(signal.SIGKILL, agent.pids())
                agent.join()
                return INTERRUPTED
            if _hang_reported(reports):  # what hangs does not hear that it should end, and no save can end well
                agent.send(signal.SIGKILL, agent.pids())
            elif seen.stop:
                fresh = agent.pids() - told
                agent.send(signal.SIGTERM, fresh)
                told |= fresh
        return explain(agent.result(), folder, seen.stop)


def _hang_reported(reports: str) -> bool:
    """Say whether a rank has reported that one does not come on."""
    for path in Path(reports).rglob("error.json"):
        with contextlib.suppress(OSError, ValueError):  # being written
            if json.loads(path.read_text()).get("kind") == HANG_KIND:
                return True
    return False


def _progress(folder: Path | None) -> tuple[int, int]:
    """Return how far a run has come: its decisions, a rollback is progress too, then the newest step that was saved,
    or begun by all of its ranks."""
    if folder is None:
        return -1, -1
    decided = 0
    with contextlib.suppress(OSError):
        decided = (folder / "ledger.jsonl").read_bytes().count(b',"kind":"commit",')
    begun = min((record.step for record in read_records(folder)), default=0)
    return decided, max([begun, *saved_steps(folder / "checkpoints")[:1]])


def _refuse_restart(code: int, stuck: int, attempt: int, max_restarts: int) -> str | None:
    """Return why the ranks are not started again after a failure; None when they are."""
    if attempt == max_restarts:
        return f"no restart: run.max_restarts={max_restarts}; {_AGAIN}"
    if stuck > (0 if code == BUG else 1):
        return f"no restart: the run came no further than before; find the cause, then {_AGAIN}"
    return None


def _say(text: str) -> None:
    print(f"trimaran: {text}", file=sys.stderr, flush=True)


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


class _Signals(SignalListener):
    """Counts what this process is asked, instead of dying of it."""

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

    def __init__(self) -> None:
        super().__init__()
        self.stop, self.interrupts = False, 0

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
    fresh = {key: value for key, value in wanted.items() if key not in os.environ}
    fresh |= {LAUNCHER: str(os.getpid()), ATTEMPT: "0"}
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
