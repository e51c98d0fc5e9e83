"""What can be done about a verdict, and what follows for a run from all that was done: pure functions of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.stability.ledger import INTENT, Record
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


def actions(records: Sequence[Record]) -> list[Action]:
    """Return the decisions of a ledger, the pending one included: it will be carried out."""
    return [Action.from_plain(record.body["action"]) for record in records if record.kind == INTENT]


def survives(step: int, known: int, records: Sequence[Record]) -> bool:
    """Say whether a state of trained step `step`, saved when the ledger held `known` records, is still of the run.

    What was trained after the step that a later rollback went back to is not. A state that survives has yet to be
    told of those rollbacks (`Watch.rolled_back`) when it reaches the step they went back to.
    """
    return all(step <= action.to for action in actions(records[known:]) if action.kind == ROLLBACK)


def skips_after(skips: Skips, done: Sequence[Action], planned: int | None) -> Skips:
    """Return the data passed over once `done` are carried out on a run that passed over `skips` from its start.

    `planned` is the number of samples of the planned run when they are put off to its end, None when dropped.
    """
    for action in done:
        if action.kind == ROLLBACK and action.first < action.stop:
            skips = skips.pass_over(action.first, action.stop, planned=planned)
    return skips


def rate_factors(done: Sequence[Action], step: int) -> tuple[float, float]:
    """Return what the scheduled learning rate and the clipping norm of trained step `step` are multiplied by.

    A lowering goes back with a rollback behind its beginning: it answers trouble that the run has yet to pass.
    """
    rate = clip = 1.0
    for place, action in enumerate(done):
        begins = min([action.begins, *(later.to for later in done[place + 1 :] if later.kind == ROLLBACK)])
        if action.kind not in (ROLLBACK, LOWER) or step < begins:
            continue
        rate *= _risen(action, step - begins)
        if action.hold is None or step - begins < action.hold:
            clip *= action.clip_factor
    return rate, clip


def _risen(action: Action, age: int) -> float:
    if action.hold is None or age < action.hold:
        return action.lr_factor
    share = (age - action.hold + 1) / (action.rewarm + 1)
    return action.lr_factor + (1.0 - action.lr_factor) * min(1.0, share)
