"""A stand-in for torch.distributed with NCCL's manners, its ranks being threads of one process.

Sends and receives ignore tags: each rank runs those it started on a communicator one after the other, and a send is
done only once the peer has come to the matching receive. A communicator belongs to a pair of ranks, and its first
use blocks both until they have come to it; or (`shared`) one belongs to the whole group, as with eager
initialisation. Once every thread waits for another, all of them fail.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor


class Deadlock(AssertionError):
    """Every rank waits for another."""


@dataclass(frozen=True)
class Group:
    """The handle one rank has of a process group."""

    rank: int
    name: str


@dataclass(eq=False)
class Work:
    """A started send or receive; the tensor is let go when it is done."""

    network: Network
    rank: int
    peer: int
    tag: int
    tensor: Tensor | None
    sends: bool
    done: bool = False
    waited: bool = False

    def wait(self) -> bool:
        self.network.wait(self)
        self.waited = True
        return True

    def is_completed(self) -> bool:
        return self.waited  # as with gloo, only who waits learns of it


class Network:
    """Replaces the name `dist` of engine.parallel.pipeline.links."""

    def __init__(self, ranks: int, shared: bool) -> None:
        self.running = set(range(ranks))
        self.most_sends_held = [0] * ranks  # most sent tensors a rank kept alive at one time
        self._shared = shared
        self._waiting: dict[int, Callable[[], bool]] = {}  # what each blocked rank waits for
        self._connecting: dict[Any, set[int]] = defaultdict(set)  # ranks that have come to a communicator
        self._changed = threading.Condition()
        self._queues: dict[Any, deque[Work]] = defaultdict(deque)
        self._sent: list[list[weakref.ref[Tensor]]] = [[] for _ in range(ranks)]

    def run(self, body: Callable[[int], Any]) -> list[Any]:
        """Return `body(rank)` of every rank, each called in a thread of its own."""

        def one(rank: int) -> Any:
            try:
                return body(rank)
            finally:
                with self._changed:
                    self.running.discard(rank)
                    self._changed.notify_all()

        with ThreadPoolExecutor(len(self.running)) as pool:
            return list(pool.map(one, range(len(self.running))))

    def get_backend(self, group: Group) -> str:
        return "nccl"

    def isend(self, tensor: Tensor, dst: int, group: Group, tag: int = 0) -> Work:
        held = [ref for ref in self._sent[group.rank] if ref() is not None]
        self._sent[group.rank] = [*held, weakref.ref(tensor)]
        self.most_sends_held[group.rank] = max(self.most_sends_held[group.rank], len(held) + 1)
        return self._start(Work(self, group.rank, dst, tag, tensor, True), group)

    def irecv(self, tensor: Tensor, src: int, group: Group, tag: int = 0) -> Work:
        return self._start(Work(self, group.rank, src, tag, tensor, False), group)

    def wait(self, work: Work) -> None:
        with self._changed:
            self._block(work.rank, work.peer, lambda: work.done)

    def _block(self, rank: int, peer: int, ready: Callable[[], bool]) -> None:
        self._waiting[rank] = ready
        self._changed.notify_all()
        self._changed.wait_for(lambda: ready() or self._is_stuck())
        if not ready():
            raise Deadlock(f"rank {rank} waits for rank {peer}")
        del self._waiting[rank]

    def _is_stuck(self) -> bool:
        return all(rank in self._waiting and not self._waiting[rank]() for rank in self.running)

    def _start(self, work: Work, group: Group) -> Work:
        with self._changed:
            if not self._shared:
                come = self._connecting[group.name, frozenset((work.rank, work.peer))]
                come.add(work.rank)
                self._block(work.rank, work.peer, lambda: len(come) == 2)
            self._queue(work.rank, work.peer, group).append(work)
            while self._match(group):
                self._changed.notify_all()
        return work

    def _queue(self, rank: int, peer: int, group: Group) -> deque[Work]:
        return self._queues[(group.name, rank) if self._shared else (group.name, rank, peer)]

    def _match(self, group: Group) -> bool:
        """Complete one message of the group whose send and receive are both at the head of their queues."""
        heads = [queue[0] for key, queue in self._queues.items() if key[0] == group.name and queue]
        for send in heads:
            others = self._queue(send.peer, send.rank, group)
            if not send.sends or not others or others[0].sends or others[0].peer != send.rank:
                continue
            receive = others[0]
            assert receive.tag == send.tag, "a message was taken for another"
            assert receive.tensor is not None
            assert send.tensor is not None
            receive.tensor.data.copy_(send.tensor)
            for work in (send, receive):
                self._queue(work.rank, work.peer, group).popleft()
                work.done, work.tensor = True, None
            return True
        return False
