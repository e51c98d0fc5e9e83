"""What a run decided and kept: its ledger, and its checkpoints."""

from __future__ import annotations

from engine.monitor.report.events import Entry
from engine.monitor.report.html import Html, card, duration, missing, moment, number, table, tag
from engine.monitor.report.read import Run
from engine.stability.actions import ROLLBACK, Action

_SHOWN_CHECKPOINTS, _SHOWN_ENTRIES = 12, 200


def ledger(run: Run) -> Html:
    """Return the ledger as a table, the newest decisions where there are too many."""
    if not run.ledger:
        return card("Ledger", missing("nothing was decided: no rollback, no lowered rate, no stop"), name="ledger")
    rows = [_entry_row(entry) for entry in run.ledger[-_SHOWN_ENTRIES:]]
    left_out = len(run.ledger) - len(rows)
    hint = "steps count the steps made, as the charts do" + (
        f"; the first {left_out} lines are left out" if left_out else ""
    )
    head = ["line", "time", "decision", "step", "onset", "to step", "data passed over", "rate", "why", "state"]
    return card("Ledger", table(head, rows, numbers=(0, 3, 4, 5, 6, 7)), hint=hint, name="ledger")


def _entry_row(entry: Entry) -> list[object]:
    words, kind = ("done", "good") if entry.committed else ("pending", "open")
    action, state = entry.action, tag("span", words, class_=f"chip {kind}")
    when = [entry.seq + 1, tag("span", moment(entry.time), class_="whole")]
    if action is None:
        return [*when, "note", "", "", "", "", "", entry.detail, state]
    onset = f"{action.onset + 1:,}" if action.onset >= 0 else ""
    to = f"{action.to:,}" if action.kind == ROLLBACK else ""
    decided = tag("span", action.kind, class_=f"chip k-{action.kind}")
    return [*when, decided, f"{action.step + 1:,}", onset, to, _data(action), _rate(action), action.reason, state]


def _data(action: Action) -> str:
    return f"{action.first:,} to {action.stop - 1:,}" if action.first < action.stop else ""


def _rate(action: Action) -> str:
    factors = [f"\u00d7 {action.lr_factor:g}"] if action.lr_factor != 1 else []
    factors += [f"clip \u00d7 {action.clip_factor:g}"] if action.clip_factor != 1 else []
    return ", ".join(factors)


def checkpoints(run: Run) -> Html:
    """Return what saving cost."""
    if not run.checkpoints:
        return card("Checkpoints", missing("none is recorded"), name="checkpoints", wide=False)
    rows = [
        (f"{record['step']:,}", f"{number(record['checkpoint_bytes'], 3)}B", duration(record.get("checkpoint_save_s")),
         duration(record.get("checkpoint_stall_s")))
        for record in reversed(run.checkpoints[-_SHOWN_CHECKPOINTS:])
    ]  # fmt: skip
    hint = f"{len(run.checkpoints)} saved" + (", the newest below" if len(run.checkpoints) > len(rows) else "")
    head = ["step", "size", "written in", "training waited"]
    return card("Checkpoints", table(head, rows, numbers=range(4)), hint=hint, name="checkpoints", wide=False)
