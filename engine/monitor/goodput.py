"""Goodput: which share of a run's time brought it on, over all of its restarts, and where the rest went.

The run folder says it all: metrics.jsonl has the time of each step that was kept, and `attempts.jsonl` when the run
was started, from which step it went on, what that repeated, and how it ended. Its events, one JSON object a line:

    {"event": "start", "time": T}                   a process of ours began; T in seconds since 1970
    {"event": "begin", "time": T, "step": S, "last": L, "repeated_s": R}   training goes on after step S; the attempt
                                                    before wrote its last record at L, R seconds of it are repeated
    {"event": "failed", "time": T, "code": N}       the launcher saw the ranks end so
    {"event": "explained", "time": T, "code": N, "why": W}  why they did; of no account
    {"event": "end", "time": T, "step": S}          the training came to an end of its own, or as it was asked to
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_HANG_CODE = 124  # launch/codes.py
_CAUSES = {  # in the order of the summary
    "startup": "start-up", "data": "data", "evaluation": "evaluation", "checkpoint": "checkpoints",
    "skipped": "skipped steps", "repeated": "repeated steps", "rollback": "rollbacks", "hang": "hangs",
    "died": "deaths", "other": "other",
}  # fmt: skip


@dataclass
class Account:
    """Seconds: `useful` ones, `lost` ones by cause (keys of _CAUSES but "other"), up to moment `until`."""

    useful: float = 0.0
    lost: dict[str, float] = field(default_factory=dict)
    started: float | None = None
    until: float = 0.0
    idle: float = 0.0  # between an orderly end and the next start: nobody wanted the run to go on

    @property
    def total(self) -> float:
        """The time that the run was meant to go on."""
        return 0.0 if self.started is None else max(0.0, self.until - self.started - self.idle)

    @property
    def goodput(self) -> float:
        """The useful share, 0 to 1."""
        return min(1.0, self.useful / self.total) if self.total > 0 else 0.0

    def lose(self, cause: str, seconds: float) -> None:
        """Book time that a clock set back cannot make negative."""
        self.lost[cause] = self.lost.get(cause, 0.0) + max(0.0, seconds)

    def add(self, record: Mapping[str, Any]) -> None:
        """Book one record of metrics.jsonl."""
        step_s, data_s = float(record.get("step_time_s") or 0.0), float(record.get("data_time_s") or 0.0)
        if "loss" in record:
            self.lose("data", data_s)
            if record.get("skipped"):
                self.lose("skipped", step_s - data_s)
            else:
                self.useful += max(0.0, step_s - data_s)
        self.lose("evaluation", float(record.get("valid_time_s") or 0.0))
        self.lose("checkpoint", float(record.get("checkpoint_stall_s") or 0.0))

    def describe(self) -> str:
        """Return one line: the goodput, the time it is a share of, and each loss of 0.1% or more."""
        other = self.total - self.useful - sum(self.lost.values())
        shares = {**self.lost, "other": max(0.0, other)}
        told = [
            f"{words} {100 * shares[cause] / self.total:.1f}%"
            for cause, words in _CAUSES.items()
            if self.total and shares.get(cause, 0.0) / self.total >= 0.001
        ]
        return f"goodput {100 * self.goodput:.1f}% of {self.total:,.0f} s; lost to " + (", ".join(told) or "nothing")


def account(events: Iterable[Mapping[str, Any]], metrics: Iterable[Mapping[str, Any]], now: float) -> Account:
    """Return where the time went up to `now` (seconds since 1970), by the events and the metrics of a run folder."""
    books = Account(until=now)
    start, ended, failed = 0.0, None, None
    for event in events:
        what = event["event"]
        if what == "start":
            start = float(event["time"])
            if books.started is None:
                books.started = start
        elif what == "begin":
            if ended is not None:
                books.idle += max(0.0, start - ended)
            elif event["last"] is not None:
                _book_death(books, float(event["last"]), failed, start)
            books.lose("startup", float(event["time"]) - start)
            books.lose("repeated", float(event["repeated_s"]))
            ended = failed = None
        elif what == "failed":
            failed = event
        elif what == "end":
            ended = float(event["time"])
    for record, kept in _kept(list(metrics)):
        if kept:
            books.add(record)
        else:
            given_up = Account()
            given_up.add(record)
            books.lose("rollback", given_up.useful + sum(given_up.lost.values()))
    return books


def _kept(metrics: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """Yield each record, and whether no later timeline went back to before its step."""
    first: dict[int, float] = {}  # step with which a timeline begins
    for record in metrics:
        timeline = int(record.get("timeline", 0))
        first[timeline] = min(first.get(timeline, math.inf), record.get("step", 0))
    for record in metrics:
        later = (step for timeline, step in first.items() if timeline > record.get("timeline", 0))
        yield record, record.get("step", 0) < min(later, default=math.inf)


def _book_death(books: Account, last: float, failed: Mapping[str, Any] | None, start: float) -> None:
    """Book the time from the last record of an attempt that failed to the start of the next."""
    cause = "hang" if failed is not None and failed["code"] == _HANG_CODE else "died"
    books.lose(cause, start - last)
