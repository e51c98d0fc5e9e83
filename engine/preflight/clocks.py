"""Clocks that differ between hosts: logs would lie about what came first, and batch systems refuse what looks old."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from torch.distributed import Store

from engine.preflight.finding import FAULT, OK, WARNING, Finding
from engine.preflight.team import Team

_WARN_S, _FAULT_S = 1.0, 60.0  # munge, which SLURM trusts, refuses messages of hosts that are 300 s apart
_TRIES = 5
Clock = Callable[[], float]


def check_clocks(team: Team, store: Store, clock: Clock = time.time) -> list[Finding]:
    """Compare the clock (seconds since 1970) of the first rank of each host with that of rank 0."""
    heads = sorted({team.hosts.index(host) for host in team.hosts} - {0})
    offsets = {0: 0.0}
    for rank in heads:  # one at a time: rank 0 answers in between
        if team.rank in (0, rank):
            measured = _offset(store, team.rank == 0, f"trimaran/clock/{rank}", clock)
            offsets[rank] = measured or 0.0
    told = team.gather(offsets.get(team.rank, 0.0) if team.rank else 0.0)
    return [judge_clocks([told[rank] for rank in (0, *heads)], [team.place(rank) for rank in (0, *heads)])]


def _offset(store: Store, is_reference: bool, key: str, clock: Clock) -> float | None:
    """Return by how many seconds this rank's clock is ahead of the reference's, who answers and gets None.

    The answer came in the middle between question and hearing it; of several tries the quickest counts.
    """
    best: tuple[float, float] | None = None
    for number in range(_TRIES):
        ask, answer = f"{key}/{number}/ask", f"{key}/{number}/answer"
        if is_reference:
            store.get(ask)
            store.set(answer, repr(clock()))
            continue
        began, mine = time.perf_counter(), clock()
        store.set(ask, "")
        theirs = float(store.get(answer))
        took = time.perf_counter() - began
        if best is None or took < best[0]:
            best = (took, mine + took / 2 - theirs)
    return None if best is None else best[1]


def judge_clocks(offsets: Sequence[float], places: Sequence[str]) -> Finding:
    """Judge how far clocks are ahead of the first one, in seconds."""
    spread = max(offsets) - min(offsets)
    worst = max(range(len(offsets)), key=lambda index: abs(offsets[index]))
    if spread < _WARN_S:
        return Finding(OK, "clocks", f"no two hosts are further apart than {spread:.3f} s")
    side = "ahead of" if offsets[worst] > 0 else "behind"
    text = f"the clock of {places[worst]} is {abs(offsets[worst]):.1f} s {side} that of {places[0]}; synchronise it"
    return Finding(FAULT if spread >= _FAULT_S else WARNING, "clocks", f"{text} (chronyc, timedatectl)")
