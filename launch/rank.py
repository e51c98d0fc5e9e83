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

from engine.errors import EngineError

USER_ERROR, BUG, INTERRUPTED = 2, 1, 130  # exit codes
LAUNCHER = "TRIMARAN_LAUNCHER"  # set for ranks that launch.ranks started: the process id of the launcher
_PR_SET_PDEATHSIG = 1  # from linux/prctl.h

# Phrases by which a rank says that it failed only because a peer was gone.
_ECHOES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "Timed out")


def is_rank() -> bool:
    """Return whether this process was started as a rank, by us, torchrun or a batch system."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def run_rank(body: Callable[[], int]) -> int:
    """Run `body`, a rank's whole work, and return its exit code; a failure is told to whoever can show it.

    Under torchrun there is no launcher of ours: a user's mistake is printed by the first rank that meets it, and
    anything else is left to torchrun.
    """
    ours = LAUNCHER in os.environ
    if ours:
        _die_with(int(os.environ[LAUNCHER]))
    try:
        return body()
    except EngineError as error:
        if ours:
            _report("user", str(error))
        elif _is_first_to_fail():
            print(f"trimaran: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if not ours:
            raise
        _report("echo" if _is_echo(error) else "bug", traceback.format_exc())
        return BUG


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


def _die_with(launcher: int) -> None:
    """Have the kernel kill this rank if the launcher is killed: an orphan would go on writing to the run folder."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:
            os.kill(os.getpid(), signal.SIGKILL)


def _report(kind: str, text: str) -> None:
    """Write the agent's error file for this rank: its format, and the kind of failure."""
    with open(os.environ["TORCHELASTIC_ERROR_FILE"], "w") as file:
        json.dump({"message": text, "timestamp": int(time.time()), "kind": kind}, file)


def _is_echo(error: Exception) -> bool:
    """Return whether `error` most likely means that another rank failed first."""
    import torch.distributed as dist

    return isinstance(error, dist.DistBackendError | dist.DistNetworkError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _ECHOES)
    )


def _is_first_to_fail() -> bool:
    """Ask the job's store; say yes when it cannot be reached, so that no message is lost."""
    import torch.distributed as dist

    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False
        )
        return store.add(f"trimaran/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except (KeyError, RuntimeError):
        return True
