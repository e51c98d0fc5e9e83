"""The messages of a schedule as data: who sends what to whom, and one order that all stages agree on.

NCCL ignores tags: two ranks must start their sends and receives on one communicator in the same order. Where both
neighbours of a stage are one rank (two stages, several chunks), or where a communicator serves all stages, both
directions share it, so every stage starts its messages in the order given here. The order is that of a simulated
run, hence compatible with cause and effect: a stage that has started everything that precedes the message it waits
for cannot take part in a deadlock.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.parallel.pipeline.schedule import Action, Kind, Schedule, simulate, target, virtual_stage


@dataclass(frozen=True, slots=True)
class Message:
    """A tensor that one action hands to another: an activation (kind F) or a gradient (kind B)."""

    order: int  # place in the total order of all messages of the schedule
    tag: int  # distinct among all messages from `sender` to `receiver`
    sender: int  # stage
    receiver: int  # stage
    produced_by: Action  # on the sender
    used_by: Action  # on the receiver
    produced_at: int  # index of `produced_by` in the sender's list
    used_at: int  # index of `used_by` in the receiver's list

    @property
    def kind(self) -> Kind:
        return self.used_by.kind


def messages(schedule: Schedule, chunks: int) -> list[Message]:
    """Return every message of `schedule` in total order, those from a stage to itself included.

    Raises ValueError when the schedule deadlocks.
    """
    stages = len(schedule)
    spans = simulate(schedule, chunks, lambda stage, action: 1.0 if action.kind is Kind.F else 2.0)
    places = [{action: index for index, action in enumerate(actions)} for actions in schedule]
    found = []
    for stage, actions in enumerate(schedule):
        for index, action in enumerate(actions):
            after = target(stages, chunks, stage, action)
            if after is None:
                continue
            # Among messages of one moment, a stage lists what it receives before what it sends: it can then start
            # the receive while it still computes what it will send.
            depth = virtual_stage(stages, stage, action.chunk)
            moment = (spans[stage][index][1], action.kind, depth if action.kind is Kind.F else -depth)
            found.append((moment, stage, index, action, *after))
    found.sort(key=lambda item: item[:3])
    return [
        Message(
            order=order,
            tag=(used_by.micro * chunks + used_by.chunk) * 2 + (used_by.kind is Kind.B),
            sender=sender,
            receiver=receiver,
            produced_by=action,
            used_by=used_by,
            produced_at=index,
            used_at=places[receiver][used_by],
        )
        for order, (_, sender, index, action, receiver, used_by) in enumerate(found)
    ]
