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
        number = store.add(f"trimaran/preflight/{rank}", 1)  # keys of an earlier one must not be read
        self.key = f"trimaran/preflight/{number}"
        self.hosts: list[str] = self.gather(socket.gethostname())

    def gather(self, fact: Any) -> list[Any]:
        """Return every rank's `fact` (JSON values) in rank order, on every rank."""
        self._round += 1
        key = f"{self.key}/{self._round}"
        if self.rank != 0:
            self._store.set(f"{key}/{self.rank}", json.dumps(fact))
            return json.loads(self._store.get(f"{key}/all"))
        others = [json.loads(self._store.get(f"{key}/{rank}")) for rank in range(1, self.world)]
        facts = [json.loads(json.dumps(fact)), *others]
        self._store.set(f"{key}/all", json.dumps(facts))
        return facts

    def part(self) -> None:
        """End together: rank 0, with whom the store may end, waits until all others have come here."""
        self.gather(None)
        if self.rank != 0:
            self._store.set(f"{self.key}/left/{self.rank}", "")
            return
        for rank in range(1, self.world):
            self._store.get(f"{self.key}/left/{rank}")

    def place(self, rank: int) -> str:
        """Return a rank in words, with its host where there are several."""
        return f"rank {rank}" + (f" on {self.hosts[rank]}" if len(set(self.hosts)) > 1 else "")
