"""The machines of a run, one launcher on each: they meet at one address, and agree on how each attempt ended.

Node 0 keeps a store at that address for as long as it lives. Each attempt has keys of its own in it, so that nothing is
left of the ranks that died in the one before. Node 0 hears from every node how its ranks ended, picks the end that
explains the others, and says whether all start again. A node that does not answer ends the run: whoever started the
launchers has to start them again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from engine.config import ClusterConfig
from engine.validate.cluster import check_rendezvous
from launch.codes import DIED, DONE, INTERRUPTED
from launch.explain import Ended, line
from launch.progress import AGAIN

Refusal = Callable[[Ended], str | None]
_PATIENCE_S = 60.0  # how long the end of one node's ranks may come after another's
_FAREWELL_S = 10.0  # how long node 0 stays for others to hear its last word
_POLL_S = 0.5


class NodesError(Exception):
    """The nodes do not come together; the text is one line."""


class Nodes:
    """This node, number `number` of `count`, and the store at `host`:`port` by which it talks to the others."""

    def __init__(self, cluster: ClusterConfig) -> None:
        """Meet the others; NodesError when they do not come within cluster.join_s seconds."""
        self.count = cluster.nodes
        self.host, self.port = check_rendezvous(cluster.rendezvous)
        self.failed = threading.Event()  # set once another node has failed in this attempt, or is gone
        given = _given_number(cluster)
        self._keeps = False
        self._store = self._open(given, timedelta(seconds=cluster.join_s))
        self._join_s = cluster.join_s
        try:
            self.number = self._claim(given)
            self._wait_for_all()
        except dist.DistError:
            raise NodesError(
                f"node 0, at {self.host}:{self.port}, gave up waiting; start the same command on every node."
            ) from None
        # In a job, the output of all nodes is one log.
        self.speaks = self.number == 0 or "SLURM_STEP_ID" not in os.environ

    # -- coming together ---------------------------------------------------------------------------------------

    def _open(self, given: int | None, timeout: timedelta) -> dist.TCPStore:
        """Keep the store on the node that is number 0, or that the address belongs to; connect to it on the others."""
        if given == 0 or (given is None and _is_here(self.host)):
            try:
                store = dist.TCPStore(self.host, self.port, is_master=True, timeout=timeout, wait_for_workers=False)
                self._keeps = True
                return store
            except dist.DistError as error:
                if given == 0:
                    raise NodesError(
                        f"node 0 cannot listen at port {self.port} ({_first(error)}); write another port in "
                        "cluster.rendezvous, on every node."
                    ) from None
        try:  # another launcher of this machine may have been first
            return self._connect(timeout)
        except dist.DistError as error:
            raise NodesError(
                f"nobody answers at cluster.rendezvous={self.host}:{self.port} ({_first(error)}); start the same "
                "command on that node too, and see that its port can be reached."
            ) from None

    def _connect(self, timeout: timedelta = timedelta(seconds=_PATIENCE_S)) -> dist.TCPStore:
        return dist.TCPStore(self.host, self.port, is_master=False, timeout=timeout, wait_for_workers=False)

    def _claim(self, given: int | None) -> int:
        """Return this node's number: the one it was given, 0 where the store is, elsewhere the first free one."""
        free = [given] if given is not None else [0] if self._keeps else range(1, self.count)
        for number in free:
            if self._store.add(f"node/{number}", 1) == 1:
                return number
        who = f"cluster.nodes={self.count} nodes are" if given is None else f"node {given} is"
        raise NodesError(
            f"{who} there already, at {self.host}:{self.port}; end those launchers first, or write another port."
        )

    def _wait_for_all(self) -> None:
        """Wait until all nodes are there, and say so where that takes long."""
        deadline = time.monotonic() + self._join_s
        self._store.add("here", 1)
        said = False
        while (here := self._store.add("here", 0)) < self.count:
            if time.monotonic() > deadline:
                raise NodesError(
                    f"only {here} of cluster.nodes={self.count} nodes came to {self.host}:{self.port} within "
                    f"cluster.join_s={self._join_s:g} s; start the same command on every node."
                )
            if not said and time.monotonic() > deadline - self._join_s + 10:
                print(
                    line(f"node {self.number}: {here} of {self.count} nodes are here, waiting for the others."),
                    flush=True,
                )
                said = True
            time.sleep(0.1)

    def meeting(self, attempt: int) -> RendezvousHandler:
        """Return how the agents of all nodes meet for an attempt; watch out for those that fail in it."""
        self.failed = threading.Event()  # not cleared: the watcher of the attempt before may be late
        try:
            store = self._connect()
        except dist.DistError:
            raise NodesError(f"node 0, at {self.host}:{self.port}, is gone.") from None
        threading.Thread(target=self._watch, args=(store, attempt, self.failed), daemon=True).start()
        return _Meeting(self, dist.PrefixStore(f"attempt-{attempt}", self._store), attempt)

    def _watch(self, store: dist.Store, attempt: int, failed: threading.Event) -> None:
        """Set `failed` when another node has failed in `attempt`, or when node 0 is gone."""
        try:
            while not store.check([f"{attempt}/over"]):
                if store.check([f"{attempt}/failed"]):
                    break
                time.sleep(_POLL_S)
            else:
                return
        except dist.DistError:  # node 0 has ended
            pass
        failed.set()

    # -- agreeing ----------------------------------------------------------------------------------------------

    def agree(self, attempt: int, mine: Ended, refusal: Refusal) -> tuple[Ended, str | None]:
        """Tell how the ranks of all nodes ended in `attempt`; return that, and why nobody starts again (None: all do).

        `refusal` is asked on node 0. Where the others do not answer, this node is on its own, and does not.
        """
        try:
            if mine.code != DONE:
                self._store.set(f"{attempt}/failed", str(self.number))
            self._store.set(f"{attempt}/ended/{self.number}", json.dumps(dataclasses.asdict(mine)))
            if self.number == 0:
                joint, refused = self._judge(attempt, mine, refusal)
            else:
                self._store.wait([f"{attempt}/verdict"], timedelta(seconds=2 * _PATIENCE_S))
                plain, refused = json.loads(self._store.get(f"{attempt}/verdict"))
                joint = Ended(**plain)
                self._store.add(f"{attempt}/heard", 1)
        except dist.DistError:
            return self._alone(mine)
        if self.speaks:
            joint.tell()
        return joint, refused

    def _judge(self, attempt: int, mine: Ended, refusal: Refusal) -> tuple[Ended, str | None]:
        """Hear how every node ended, decide, and let all know."""
        ends, gone = self._collect(attempt, mine)
        joint = min(ends, key=lambda end: end.weight)
        joint = dataclasses.replace(
            joint, stop=any(end.stop for end in ends), interrupted=any(end.interrupted for end in ends)
        )
        if gone:
            who = f"node {gone[0]} does" if len(gone) == 1 else f"nodes {', '.join(map(str, gone))} do"
            code = joint.code if joint.code != DONE else DIED
            joint = dataclasses.replace(joint, code=code)
            refused: str | None = f"{who} not answer; on every node, {AGAIN}"
        else:
            refused = refusal(joint)
        self._store.set(f"{attempt}/verdict", json.dumps([dataclasses.asdict(joint), refused]))
        self._store.set(f"{attempt}/over", "1")
        if refused is not None:
            deadline = time.monotonic() + _FAREWELL_S
            while self._store.add(f"{attempt}/heard", 0) < len(ends) - 1 and time.monotonic() < deadline:
                time.sleep(0.05)
        return joint, refused

    def _collect(self, attempt: int, mine: Ended) -> tuple[list[Ended], list[int]]:
        """Return how the nodes ended, and the numbers of those that did not say so in time."""
        deadline = time.monotonic() + (_FAREWELL_S if mine.code == INTERRUPTED else _PATIENCE_S)
        ends, gone = [mine], []
        for number in range(1, self.count):
            key = f"{attempt}/ended/{number}"
            while not self._store.check([key]) and time.monotonic() < deadline:
                time.sleep(0.05)
            if self._store.check([key]):
                ends.append(Ended(**json.loads(self._store.get(key))))
            else:
                gone.append(number)
        return ends, gone

    def _alone(self, mine: Ended) -> tuple[Ended, str]:
        mine.tell()
        if mine.code == DONE:  # the training has ended everywhere, for nobody leaves it alone
            return mine, ""
        return mine, f"node 0, at {self.host}:{self.port}, does not answer; on every node, {AGAIN}"


class _Meeting(RendezvousHandler):
    """How torch's agents learn of each other: their numbers are known already."""

    def __init__(self, nodes: Nodes, store: dist.Store, attempt: int) -> None:
        self._nodes, self._store, self._attempt = nodes, store, attempt

    def get_backend(self) -> str:
        return "trimaran"

    def next_rendezvous(self) -> RendezvousInfo:
        """Have the ranks meet at a store of rank 0's, on a port of its own: nothing is there from attempts before."""
        nodes = self._nodes
        address = RendezvousStoreInfo.build(nodes.number, self._store, nodes.host)
        return RendezvousInfo(self._store, nodes.number, nodes.count, address)

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nobody else comes."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return f"{self._nodes.host}-{self._nodes.port}-{self._attempt}"

    def shutdown(self) -> bool:
        return True


def _given_number(cluster: ClusterConfig) -> int | None:
    """Return cluster.node, else what SLURM says in a step that has one launcher on each node."""
    if cluster.node is not None:
        return cluster.node
    in_step = "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_STEP_NUM_NODES") == str(cluster.nodes)
    return int(os.environ["SLURM_NODEID"]) if in_step else None


def _is_here(host: str) -> bool:
    """Say whether `host` is an address of this machine: only then can it be bound to."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind((address[0], 0, *address[2:]))
            except OSError:
                continue
            return True
    return False


def _first(error: BaseException) -> str:
    """Return the first line of an error of torch's, without its stack."""
    return str(error).strip().splitlines()[0].partition(" Exception raised")[0].strip()[:200]
