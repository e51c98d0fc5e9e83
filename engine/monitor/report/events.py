"""What happened to a run besides steps: the ledger's decisions, starts, skipped updates, in the words of a reader.

The ledger counts trained steps before the one that was judged; records and charts count the steps made, one more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.monitor.report.table import Table
from engine.stability.actions import LOWER, ROLLBACK, STOP, Action, action_of
from engine.stability.ledger import COMMIT, INTENT, NOTE, Record

START, AGAIN = "start", "again"


@dataclass(frozen=True)
class Event:
    """Something to mark at `step` of the charts; a rollback also marks the steps from `back_to` on that it undid."""

    kind: str  # rollback | lower | stop | start | again (steps trained twice that no ledger speaks of)
    step: int
    title: str
    detail: str = ""
    onset: int | None = None
    back_to: int | None = None


@dataclass(frozen=True)
class Entry:
    """A line of the ledger for people; where `action` is None, as for a note, all it says is in `detail`."""

    seq: int
    time: float
    action: Action | None
    detail: str
    committed: bool


def entries(records: Sequence[Record]) -> list[Entry]:
    """Return the decisions and notes of a ledger; a decision counts as committed once its commit is there."""
    done = {record.body.get("intent") for record in records if record.kind == COMMIT}
    found = []
    for record in records:
        if record.kind == COMMIT:
            continue
        action = action_of(record) if record.kind == INTENT else None
        text = ", ".join(f"{key}: {value}" for key, value in record.body.items()) if action is None else action.reason
        found.append(Entry(record.seq, record.time, action, text, record.kind == NOTE or record.seq in done))
    return found


def find_events(ledger: Sequence[Entry], starts: Sequence[Mapping[str, Any]], left: Sequence[Table]) -> list[Event]:
    """Return what to mark: the ledger's decisions, restarts, and abandoned branches that no rollback explains."""
    decided = [_decision(entry.action) for entry in ledger if entry.action is not None]
    explained = {event.back_to for event in decided if event.kind == ROLLBACK}
    again = [_again(branch) for branch in left if len(branch) and int(branch.steps[0]) - 1 not in explained]
    restarts = [_restart(start) for start in starts[1:]]
    return sorted([*decided, *again, *restarts], key=lambda event: event.step)


def _decision(action: Action) -> Event:
    if action.kind == ROLLBACK:
        data = f"; samples {action.first:,} to {action.stop - 1:,} passed over" if action.first < action.stop else ""
        title, back_to = f"rollback to step {action.to:,}{data}", action.to
    elif action.kind == LOWER:
        title, back_to = f"learning rate x {action.lr_factor:g}", None
    else:
        title, back_to = "stopped" if action.kind == STOP else action.kind, None
    onset = action.onset + 1 if action.onset >= 0 else None
    return Event(action.kind, action.step + 1, title, action.reason, onset, back_to)


def _again(branch: Table) -> Event:
    first, last = int(branch.steps[0]), int(branch.steps[-1])
    return Event(AGAIN, last, f"went back to step {first - 1:,}", "no ledger says why", back_to=first - 1)


def _restart(start: Mapping[str, Any]) -> Event:
    step, ranks = int(start["step"]), start.get("ranks")
    return Event(START, step, f"started again after step {step:,}", f"{ranks} ranks" if ranks else "")
