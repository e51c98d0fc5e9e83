"""Be a rank: run its work and leave word of what went wrong where the launcher, or torchrun, can show it.

Loads quickly: torch is imported only by what needs it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta

from engine.errors import EngineError
from engine.flight import failures
from launch.codes import BUG, DIED, HANG, INTERRUPTED, LADDER_STOP, USER_ERROR

LAUNCHER = "TRIMARAN_LAUNCHER"  # set for ranks that launch.ranks started: the process id of the launcher
BINDING = "TRIMARAN_BINDING"  # set for them too: cluster.binding
_STORE_S = 5.0  # for the job's store to answer: its host may be cut off
_PR_SET_PDEATHSIG = 1  # from linux/prctl.h

_EXPLAINED = (EngineError, failures.Hang)  # their text says it all
_CODES = {
    failures.USER: USER_ERROR, failures.STOP: LADDER_STOP, failures.BUG: BUG, failures.MEMORY: BUG,
    failures.HANG: HANG, failures.ECHO: DIED,
}  # fmt: skip


def is_rank() -> bool:
    """Return whether this process was started as a rank, by us, torchrun or a batch system."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_started_by_launcher() -> bool:
    """Return whether a launcher of ours, or torchrun, is above this rank."""
    return LAUNCHER in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def run_rank(body: Callable[[], int]) -> int:
    """Run `body`, a rank's whole work, and return its exit code; a failure is told to whoever can show it.

    Under torchrun and srun there is no launcher of ours: a user's mistake is printed by the first rank that meets it,
    and anything else is left to torchrun, or shown by each that has it.
    """
    ours = LAUNCHER in os.environ
    if ours:
        _die_with(int(os.environ[LAUNCHER]), signal.SIGKILL)
    elif "TORCHELASTIC_RUN_ID" in os.environ:  # SIGUSR1, say, ends torchrun and leaves its ranks behind: save and leave
        _die_with(os.getppid(), signal.SIGTERM)
    if os.environ.get(BINDING) == "cores":
        _bind(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    try:
        return body()
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        kind = failures.kind_of(error)
        if ours:
            _report(kind, str(error) if isinstance(error, _EXPLAINED) else traceback.format_exc())
        elif isinstance(error, _EXPLAINED):
            if _is_first_to_fail():
                print(f"trimaran: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        return _CODES[kind]


def hung(text: str) -> None:
    """End this rank, whose training stands still: called by its watchdog with one line."""
    if LAUNCHER in os.environ:
        _report(failures.HANG, text)
    elif _is_first_to_fail():
        print(f"trimaran: {text}", file=sys.stderr, flush=True)
    os._exit(HANG)


def leave(code: int) -> int:
    """End this rank at once if it failed, else return 0.

    The threads of its process groups may still wait for peers, and the C++ runtime aborts with a message of its own
    when it takes down objects that they use. All files are closed by now.
    """
    if code != 0:
        gc.collect()  # a pool of processes, whose semaphores Python would report as leaked beside our one line
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _die_with(launcher: int, number: signal.Signals) -> None:
    """Have the kernel send `number` if the launcher dies: an orphan would go on writing to the run folder."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != launcher:
            os.kill(os.getpid(), number)


def _bind(local_rank: int, ranks: int) -> None:
    """Keep this rank to its share of the cores that the launcher may use; neighbours in number are on one socket."""
    cores = sorted(os.sched_getaffinity(0))
    first, stop = (len(cores) * r // ranks for r in (local_rank, local_rank + 1))
    os.sched_setaffinity(0, cores[first:stop] or [cores[first % len(cores)]])


def _report(kind: str, text: str) -> None:
    """Write the agent's error file for this rank: its format, and the kind of failure."""
    with open(os.environ["TORCHELASTIC_ERROR_FILE"], "w") as file:
        json.dump({"message": text, "timestamp": int(time.time()), "kind": kind, "moment": time.monotonic()}, file)


def _is_first_to_fail() -> bool:
    """Ask the job's store; say yes when it cannot be reached, so that no message is lost."""
    import torch.distributed as dist

    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False,
            timeout=timedelta(seconds=_STORE_S),
        )  # fmt: skip
        return store.add(f"trimaran/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except (KeyError, RuntimeError):
        return True
