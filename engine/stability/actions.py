"""What can be done about a verdict, and what follows for a run from all that was done: pure functions of the ledger.

An intent's body holds {"action": Action.to_plain(), "verdict": Verdict.to_plain()}, its commit's {"intent": seq}.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import LedgerError
from engine.stability.ledger import INTENT, Chain, Record
from engine.stability.signals import Verdict
from engine.stability.skips import Skips

GO_ON, SKIP, ROLLBACK, LOWER, STOP = "go on", "skip", "rollback", "lower", "stop"


@dataclass(frozen=True)
class Action:
    """One decision. Only rollback, lower and stop change what comes next, and are intents in the ledger."""

    kind: str  # go on | skip | rollback | lower | stop
    step: int  # trained steps before the step that was judged
    cause: str = ""  # of the verdict
    reason: str = ""  # for people; of stop, one line that ends in what to write
    onset: int = -1  # first bad step
    to: int = -1  # rollback: trained steps of the state that is restored
    first: int = 0  # rollback: trained samples [first, stop), counted as before it, whose data are passed over
    stop: int = 0
    planned: int | None = None  # rollback: samples of the planned run, to whose end the data are put off; None: dropped
    lr_factor: float = 1.0  # rollback and lower: of the scheduled learning rate, from `begins` on
    clip_factor: float = 1.0  # of the clipping norm, for as long
    hold: int | None = None  # steps for which both stay so; None: to the end
    rewarm: int = 0  # steps over which the rate then rises back to the schedule

    @property
    def begins(self) -> int:
        """The first step that is trained after this."""
        return self.to if self.kind == ROLLBACK else self.step + 1

    def to_plain(self) -> dict[str, Any]:
        """Return this as JSON values, for the ledger."""
        return asdict(self)

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> Action:
        """Return what `to_plain` was given."""
        return Action(**plain)


def check_intents(chain: Chain) -> None:
    """Raise LedgerError for a decision that cannot be carried out here, such as one that a later version wrote."""
    for record in chain.records:
        if record.kind == INTENT and action_of(record) is None:
            raise LedgerError(
                f"{chain.name}: line {record.seq + 1} is no decision that this version knows; go on with the version "
                "that wrote it, or write another run.name."
            )


def action_of(intent: Record) -> Action | None:
    """Return the decision of an intent; None where another version wrote it in a way of its own."""
    try:
        action, verdict = Action.from_plain(intent.body["action"]), Verdict.from_plain(intent.body["verdict"])
    except (KeyError, TypeError):
        return None
    counts = [action.step, action.onset, action.to, action.first, action.stop, action.rewarm, verdict.onset]
    counts += [count for count in (action.planned, action.hold) if count is not None]
    is_sound = (
        action.kind in (ROLLBACK, LOWER, STOP)
        and all(type(count) is int for count in counts)
        and all(type(factor) in (int, float) for factor in (action.lr_factor, action.clip_factor))
        and isinstance(verdict.evidence, dict)
    )
    return action if is_sound else None


def actions(records: Sequence[Record]) -> list[Action]:
    """Return the decisions of a ledger, the pending one included: it will be carried out."""
    return [Action.from_plain(record.body["action"]) for record in records if record.kind == INTENT]


def news_at(step: int, known: int, records: Sequence[Record]) -> Verdict | None:
    """Return the verdict that detectors must be told of (`Watch.rolled_back`) before trained step `step`, if any.

    They come from a state saved when the ledger held `known` records, at this step or before it: it does not know of
    the rollbacks since. Where several went back this far, only the last one's traces are left.
    """
    rollbacks = [record for record in records[known:] if _goes_back(record) <= step]
    if not rollbacks or _goes_back(rollbacks[-1]) != step:
        return None
    return Verdict.from_plain(rollbacks[-1].body["verdict"])


def _goes_back(record: Record) -> float:
    """Return the step a record's rollback went back to; infinity for other records."""
    action = Action.from_plain(record.body["action"]) if record.kind == INTENT else None
    return action.to if action is not None and action.kind == ROLLBACK else math.inf


def skips_after(skips: Skips, done: Sequence[Action]) -> Skips:
    """Return the data passed over once `done` are carried out on a run that passed over `skips` from its start."""
    for action in done:
        if action.kind == ROLLBACK and action.first < action.stop:
            skips = skips.pass_over(action.first, action.stop, planned=action.planned)
    return skips


def rate_factors(done: Sequence[Action], step: int) -> tuple[float, float]:
    """Return what the scheduled learning rate and the clipping norm of trained step `step` are multiplied by."""
    rate = clip = 1.0
    for action, begins in begun(done):
        if action.kind not in (ROLLBACK, LOWER) or step < begins:
            continue
        rate *= _risen(action, step - begins)
        if action.hold is None or step - begins < action.hold:
            clip *= action.clip_factor
    return rate, clip


def rewarms_at(done: Sequence[Action], step: int) -> bool:
    """Say whether a lowered rate begins to rise back at trained step `step`."""
    return any(
        action.kind in (ROLLBACK, LOWER) and action.lr_factor < 1 and action.hold is not None and action.rewarm > 0
        and step == begins + action.hold
        for action, begins in begun(done)
    )  # fmt: skip


def begun(done: Sequence[Action]) -> Iterator[tuple[Action, int]]:
    """Yield the decisions and the steps they are in force from.

    A lowering goes back with a rollback behind its beginning: it answers trouble that the run has yet to pass.
    """
    for place, action in enumerate(done):
        yield action, min([action.begins, *(later.to for later in done[place + 1 :] if later.kind == ROLLBACK)])


def _risen(action: Action, age: int) -> float:
    if action.hold is None or age < action.hold:
        return action.lr_factor
    share = (age - action.hold + 1) / (action.rewarm + 1)
    return action.lr_factor + (1.0 - action.lr_factor) * min(1.0, share)
