"""torch's elastic agent, the one inside torchrun, as a thread: it starts the ranks of this machine and watches them.

In the main thread it would take the signals and end every rank with them. Its own restarts are not used.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import uuid
from collections.abc import Iterator

from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.numa.binding import AffinityMode, NumaOptions

_GRACE_S = 15  # how long ranks may outlive a failed peer: a blocked collective does not hear SIGTERM


def alone() -> RendezvousHandler:
    """Return the meeting of a machine that is on its own, with a store of its own: no addresses of dead ranks."""
    rendezvous = RendezvousParameters(
        backend="c10d", endpoint="localhost:0", run_id=uuid.uuid4().hex, min_nodes=1, max_nodes=1,
        local_addr="localhost", is_host=True,
    )  # fmt: skip
    return get_rendezvous_handler(rendezvous)


class Agent(threading.Thread):
    """Starts `count` processes of `command` once; their reports go below `folder`.

    `numa` binds each to the processors beside its GPU.
    """

    def __init__(
        self, command: list[str], count: int, folder: str, rendezvous: RendezvousHandler, *, numa: bool = False
    ) -> None:
        super().__init__(name="elastic-agent", daemon=True)
        self._rendezvous = rendezvous
        spec = WorkerSpec(
            role="rank", local_world_size=count, entrypoint=command[0], args=tuple(command[1:]),
            rdzv_handler=rendezvous, max_restarts=0, monitor_interval=0.1, local_addr="localhost",
            numa_options=NumaOptions(AffinityMode.NODE) if numa else None,
        )  # fmt: skip
        logs = DefaultLogsSpecs(log_dir=folder)
        self._agent = LocalElasticAgent(spec, logs, exit_barrier_timeout=1, shutdown_timeout=_GRACE_S)
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


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the agent's log lines away: what they report is printed by us, in fewer words."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
