"""The ranks of a preflight, and how they tell each other short facts without a collective that might be broken."""

from __future__ import annotations

import json
import socket
from typing import Any

from torch.distributed import Store


class Team:
    """Rank `rank` of `world`; all ranks must call `gather` equally often. `hosts` [world] are the names of theirs."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self._store, self.rank, self.world, self._round = store, rank, world, 0
        self.hosts: list[str] = self.gather(socket.gethostname())

    def gather(self, fact: Any) -> list[Any]:
        """Return every rank's `fact` (JSON values) in rank order, on every rank."""
        self._round += 1
        key = f"trimaran/preflight/{self._round}"
        if self.rank != 0:
            self._store.set(f"{key}/{self.rank}", json.dumps(fact))
            return json.loads(self._store.get(f"{key}/all"))
        others = [json.loads(self._store.get(f"{key}/{rank}")) for rank in range(1, self.world)]
        facts = [json.loads(json.dumps(fact)), *others]
        self._store.set(f"{key}/all", json.dumps(facts))
        return facts

    def first_on_host(self) -> bool:
        """Say whether no rank before this one is on its host."""
        return self.hosts.index(self.hosts[self.rank]) == self.rank

    def place(self, rank: int) -> str:
        """Return a rank in words, with its host where there are several."""
        return f"rank {rank}" + (f" on {self.hosts[rank]}" if len(set(self.hosts)) > 1 else "")
