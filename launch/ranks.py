"""Start the ranks of a run on this machine, pass signals on to them, and say once what went wrong.

Ranks are processes of torch's elastic agent (launch/agent.py), so a rank sees the same environment as under torchrun. A
rank that fails leaves a report in the file the agent names; the launcher shows the one report that explains the others
(launch/explain.py), instead of the agent's page about child processes. On several machines, each has a launcher, and
they agree on what happened and on whether all start again (launch/nodes.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from torch.distributed import DistError

from engine.flight.failures import HANG as HANG_KIND
from engine.monitor import attempts
from engine.stop_request import SignalListener
from launch.agent import Agent, alone, silence
from launch.codes import DIED, DONE, INTERRUPTED, RESTARTABLE, UNFINISHED, Outcome
from launch.environment import ALLOCATOR, Setting, defaults
from launch.explain import Ended, explain, line
from launch.nodes import Nodes, NodesError
from launch.progress import Restarts
from launch.rank import BINDING, LAUNCHER

ATTEMPT = "TRIMARAN_ATTEMPT"  # set for ranks: how often they were started before (engine.flight.recorder)
_FROM = "from the newest checkpoint"
_LAST_WORDS_S = 5.0  # how long ranks may take to say that they lost a peer on another node


def start_ranks(
    command: list[str], count: int, folder: Path | None = None, max_restarts: int = 0, *, nodes: Nodes | None = None,
    binding: str = "none", settings: list[Setting] | None = None,
) -> Outcome:  # fmt: skip
    """Run `count` processes of `command` as ranks on this machine until all have ended.

    Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 reach each rank once, as SIGTERM: it finishes its step, saves and returns 0,
    and we `DONE` after Ctrl-C, else `UNFINISHED`. A second Ctrl-C kills the ranks. A failure is printed on stderr.

    `folder` is the run's. After a failure that another try may not meet, all ranks are started again, up to
    `max_restarts` times, unless the last tries have brought the run no further: what fails twice in one place will
    fail there again. `nodes` are the other machines of the run, `binding` is cluster.binding, and `settings` are what
    the ranks find in their environment unless a user has chosen otherwise.
    """
    wanted = {setting.name: setting.value for setting in settings or []}
    wanted |= {**ALLOCATOR, "OMP_NUM_THREADS": str(_threads(count))}
    forced = {LAUNCHER: str(os.getpid()), ATTEMPT: "0", BINDING: binding}
    with defaults(wanted, forced), silence(), _Signals() as seen:
        restarts = Restarts(folder, max_restarts)

        def refusal(ended: Ended) -> str | None:
            """Return why nobody starts again after `ended`, "" where there is nothing to say."""
            if ended.code not in RESTARTABLE or ended.stop:
                return ""
            if folder is not None:
                attempts.note(folder, "failed", code=ended.code)
            return restarts.refusal(ended.code)

        for attempt in range(max_restarts + 1):
            os.environ[ATTEMPT] = str(attempt)
            ended = _run_once(command, count, folder, seen, nodes, attempt)
            ended = dataclasses.replace(ended, stop=seen.stop, interrupted=seen.interrupts > 0)
            if nodes is not None:
                ended, refused = nodes.agree(attempt, ended, refusal)
            else:
                ended.tell()
                refused = refusal(ended)
            speaks = nodes is None or nodes.speaks
            if folder is not None and speaks and ended.text:
                attempts.note(folder, attempts.EXPLAINED, code=ended.code, why=ended.in_short())
            if refused is not None:
                _say(refused if speaks else "")
                break
            if speaks:
                _say(f"restart {attempt + 1} of at most {max_restarts}: all ranks start again, {_FROM}.")
        asked_by_machine = ended.stop and not ended.interrupted
        return Outcome(UNFINISHED if ended.code == DONE and asked_by_machine else ended.code, ended.stop)


def _threads(ranks: int) -> int:
    """Return the threads of a rank: more than cores make OpenMP spin against itself."""
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def _run_once(
    command: list[str], count: int, folder: Path | None, seen: _Signals, nodes: Nodes | None, attempt: int
) -> Ended:
    """Start the ranks once and wait for their end; kill them where they hang, or where another node has failed."""
    with tempfile.TemporaryDirectory(prefix="trimaran-") as reports:
        try:
            meeting = alone() if nodes is None else nodes.meeting(attempt)
        except NodesError as error:
            return Ended(DIED, "echo", line(str(error)))
        agent = Agent(command, count, reports, meeting, numa=os.environ[BINDING] == "numa")
        told: set[int] = set()
        deadline: float | None = None  # until which ranks may tell that another node has failed
        while agent.is_alive():
            agent.join(0.1)
            if seen.interrupts > 1:
                agent.send(signal.SIGKILL, agent.pids())
                agent.join()
                return Ended(INTERRUPTED, "interrupt")
            if nodes is not None and deadline is None and nodes.failed.is_set():
                deadline = time.monotonic() + _LAST_WORDS_S
            late = deadline is not None and time.monotonic() > deadline
            if late or _hang_reported(reports):  # what hangs does not hear that it should end, and no save can end well
                agent.send(signal.SIGKILL, agent.pids())
            elif seen.stop:
                fresh = agent.pids() - told
                agent.send(signal.SIGTERM, fresh)
                told |= fresh
        try:
            ended = explain(agent.result(), folder, seen.stop)
        except DistError:
            if nodes is None:
                raise
            return Ended(
                DIED, "echo", line("the ranks of the nodes did not meet: a node is gone, or cannot be reached.")
            )
        if late and ended.kind == "signal":  # by us
            return Ended(DIED, "ended", line("the ranks of this node were ended, because another node has failed."))
        return ended


def _hang_reported(reports: str) -> bool:
    """Say whether a rank has reported that one does not come on."""
    for path in Path(reports).rglob("error.json"):
        with contextlib.suppress(OSError, ValueError):  # being written
            if json.loads(path.read_text()).get("kind") == HANG_KIND:
                return True
    return False


def _say(text: str) -> None:
    if text:
        print(line(text), file=sys.stderr, flush=True)


class _Signals(SignalListener):
    """Counts what this process is asked, instead of dying of it."""

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

    def __init__(self) -> None:
        super().__init__()
        self.stop, self.interrupts = False, 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        self.interrupts += number == signal.SIGINT
