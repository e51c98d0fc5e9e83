"""Which rank others wait for in vain: pure functions of the flight records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.flight.phases import PHASES
from engine.flight.reader import Collective, RankRecord

_SILENCE_S = 3.0  # signs of life come every second


def find_culprit(records: Sequence[RankRecord]) -> tuple[RankRecord, str] | None:
    """Return the rank that kept the others from going on, and why it is thought so; None for no records.

    In this order: one that gives no signs of life any more while others do (stopped, or its Python locked), one that
    others wait for and that waits for nobody, one of two that wait for each other in the same collective on different
    hosts, the two sides of collectives that do not fit each other, and, where waiting does not show (on GPUs the host
    runs ahead), the one that has come least far.
    """
    if not records:
        return None
    silent = _silent(records)
    if silent is not None:
        return silent, "it has given no sign of life since"
    waiting = {record.rank: record for record in records if record.waiting is not None}
    awaited = {other for record in waiting.values() for other in _awaited(record)}
    idle = [record for record in records if record.rank in awaited - waiting.keys()]
    if idle:
        return min(idle, key=_progress), "the others wait for it"
    parted = _parted(waiting) if len(waiting) == len(records) else None
    if parted is not None:
        return parted
    apart = _apart(list(waiting.values())) if len(waiting) == len(records) else None
    if apart is not None:
        return apart
    return min(records, key=_progress), "no rank has come less far" if len(records) > 1 else "it stands still"


def _silent(records: Sequence[RankRecord]) -> RankRecord | None:
    """Return the rank whose signs of life ended long before those of others on its machine."""
    latest: dict[str, float] = {}
    for record in records:
        latest[record.host] = max(record.alive, latest.get(record.host, 0.0))
    silent = [record for record in records if record.alive and latest[record.host] - record.alive > _SILENCE_S]
    return min(silent, key=lambda record: record.alive) if silent else None


def _awaited(record: RankRecord) -> set[int]:
    """Return the ranks that must come before `record` can go on."""
    entry = record.waiting
    assert entry is not None
    if entry.peer >= 0:
        return {entry.peer}
    return set(members(record.rank, record.sizes, entry.axis)) - {record.rank}


def members(rank: int, sizes: Sequence[int], axis: str) -> list[int]:
    """Return the global ranks of the group over `axis` that `rank` is in, on a grid of pp, dp, cp, tp `sizes`."""
    grid = np.arange(int(np.prod(sizes))).reshape(*sizes)
    place: list[int | slice] = list(np.argwhere(grid == rank)[0].tolist())
    names = {"pp": 0, "dp": 1, "cp": 2, "tp": 3, "tp-part": 3, "embedding": 0}
    if axis not in names:
        return list(range(grid.size))
    place[names[axis]] = slice(None)
    along = grid[tuple(place)].tolist()
    return [along[0], along[-1]] if axis == "embedding" else along


def _parted(waiting: dict[int, RankRecord]) -> tuple[RankRecord, str] | None:
    """Return a rank that waits for one on another host, which waits for it: both came, what they sent did not."""
    for record in sorted(waiting.values(), key=lambda record: record.rank):
        for other in (waiting[rank] for rank in sorted(_awaited(record)) if rank in waiting):
            if other.host != record.host and record.rank in _awaited(other) and _fit(record, other):
                return record, (
                    f"rank {other.rank} waits for it as well: the network between {record.host} and {other.host} is "
                    "down, or slower than parallel.timeout_s"
                )
    return None


def _fit(one: RankRecord, other: RankRecord) -> bool:
    """Say whether two ranks are in the same collective, or each in a message of the other's."""
    a, b = one.waiting, other.waiting
    assert a is not None
    assert b is not None
    return a.peer >= 0 or _kind(a) == _kind(b)


def _apart(records: Sequence[RankRecord]) -> tuple[RankRecord, str] | None:
    """Return a rank whose collective is not the one that most are in, if their collectives do not fit."""
    kinds: dict[tuple[str, str, int], list[RankRecord]] = {}
    for record in records:
        entry = record.waiting
        assert entry is not None
        if entry.peer >= 0:
            return None  # messages of a pipeline differ by nature
        kinds.setdefault(_kind(entry), []).append(record)
    if len(kinds) < 2:
        return None
    fewest, most = min(kinds.values(), key=len), max(kinds.values(), key=len)
    other = most[0] if most[0] is not fewest[0] else max(records, key=lambda record: record.rank)
    assert other.waiting is not None
    return fewest[0], f"rank {other.rank} is in {other.waiting.describe()}: the two do not belong together"


def _kind(entry: Collective) -> tuple[str, str, int]:
    return entry.op, entry.axis, entry.nbytes


def _progress(record: RankRecord) -> tuple[int, int, float]:
    known = PHASES.index(record.phase) if record.phase in PHASES else len(PHASES)
    return record.step, known, record.since
