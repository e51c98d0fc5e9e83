"""Pipeline schedules as data: a list of actions per stage, made by pure functions.

The same lists are executed by the trainer, checked by property tests, timed by the planner and drawn by the
report. A model is cut into `stages * chunks` virtual stages; virtual stage ``v = chunk * stages + stage`` lives on
`stage` as its local chunk `chunk`. Every schedule runs the backward passes of a chunk in micro-batch order, so that
gradients are summed in the same order, hence bitwise alike, whatever the schedule.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import ConfigError, did_you_mean


class Kind(enum.StrEnum):
    """What an action does; a split of the backward pass into input and weight gradients would be a third kind."""

    F = "F"  # forward of one micro-batch through one chunk
    B = "B"  # backward of the same


@dataclass(frozen=True, order=True, slots=True)
class Action:
    """One unit of work of one stage."""

    kind: Kind
    micro: int  # micro-batch, 0 .. micros-1
    chunk: int  # local chunk of the stage, 0 .. chunks-1

    def __str__(self) -> str:
        return f"{self.kind}{self.micro}.{self.chunk}"


Schedule = list[list[Action]]  # the actions of every stage, in order of execution
Span = tuple[float, float]  # start and end of an action


def virtual_stage(stages: int, stage: int, chunk: int) -> int:
    """Return the place of a chunk in model order."""
    return chunk * stages + stage


def _place(stages: int, virtual: int) -> tuple[int, int]:
    """Return the (stage, chunk) of a virtual stage."""
    return virtual % stages, virtual // stages


def source(stages: int, chunks: int, stage: int, action: Action) -> tuple[int, Action] | None:
    """Return the (stage, action) whose result `action` needs from elsewhere; None where the pipeline begins.

    A backward pass also needs the forward pass of its own chunk, which is on the same stage.
    """
    step = -1 if action.kind is Kind.F else 1
    return _neighbour(stages, chunks, stage, action, step)


def target(stages: int, chunks: int, stage: int, action: Action) -> tuple[int, Action] | None:
    """Return the (stage, action) that needs the result of `action`; None where the pipeline ends."""
    step = 1 if action.kind is Kind.F else -1
    return _neighbour(stages, chunks, stage, action, step)


def _neighbour(stages: int, chunks: int, stage: int, action: Action, step: int) -> tuple[int, Action] | None:
    virtual = virtual_stage(stages, stage, action.chunk) + step
    if not 0 <= virtual < stages * chunks:
        return None
    other, chunk = _place(stages, virtual)
    return other, Action(action.kind, action.micro, chunk)


def gpipe(stages: int, micros: int) -> Schedule:
    """All forward passes, then all backward passes (Huang et al. 2019, arXiv:1811.06965)."""
    forward, backward = _units(Kind.F, [range(micros)], 1), _units(Kind.B, [range(micros)], 1)
    return [forward + backward for _ in range(stages)]


def one_f_one_b(stages: int, micros: int) -> Schedule:
    """1F1B: at most `stages - stage` micro-batches in flight (Narayanan et al. 2021, arXiv:2104.04473)."""
    forward, backward = _units(Kind.F, [range(micros)], 1), _units(Kind.B, [range(micros)], 1)
    return [_alternate(forward, backward, stages - stage - 1) for stage in range(stages)]


def interleaved(stages: int, micros: int, chunks: int) -> Schedule:
    """Megatron's interleaved 1F1B, for any number of micro-batches.

    Micro-batches advance in groups: a group passes through chunk 0, then chunk 1, and so on. Megatron takes groups
    of `stages` and wants `micros` to be a multiple; a smaller last group would deadlock here. Splitting `micros` into
    `micros // stages` groups of nearly equal size instead keeps every group at least `stages` long, which is all
    that a full pipeline needs: the bubble is the ideal one for every `micros >= stages`.
    """
    groups = _micro_groups(stages, micros)
    forward, backward = _units(Kind.F, groups, chunks), _units(Kind.B, groups, chunks)
    return [_alternate(forward, backward, interleaved_warmup(stages, micros, chunks, stage)) for stage in range(stages)]


def interleaved_warmup(stages: int, micros: int, chunks: int, stage: int) -> int:
    """Return how many forward passes `stage` runs before it alternates (Megatron's formula for our groups)."""
    largest_group = len(_micro_groups(stages, micros)[0])
    return min(micros * chunks, 2 * (stages - stage - 1) + (chunks - 1) * largest_group)


def forward_only(stages: int, micros: int, chunks: int) -> Schedule:
    """Forward passes alone, for evaluation; groups as in `interleaved`, so that all chunks stay busy."""
    forward = _units(Kind.F, _micro_groups(stages, micros), chunks)
    return [list(forward) for _ in range(stages)]


def _micro_groups(stages: int, micros: int) -> list[range]:
    """Cut 0..micros-1 into runs of nearly equal length, longest first, each >= `stages` (one run if too few)."""
    count = max(1, micros // stages)
    sizes = [micros // count + (group < micros % count) for group in range(count)]
    return [range(sum(sizes[:group]), sum(sizes[: group + 1])) for group in range(count)]


def _units(kind: Kind, groups: list[range], chunks: int) -> list[Action]:
    """List every (micro, chunk) in the order of one stage: group by group, chunk by chunk (last first for B)."""
    order = range(chunks) if kind is Kind.F else range(chunks - 1, -1, -1)
    return [Action(kind, micro, chunk) for group in groups for chunk in order for micro in group]


def _alternate(forward: list[Action], backward: list[Action], warmup: int) -> list[Action]:
    """Run `warmup` forward passes, then one forward and one backward in turn, then the remaining backwards."""
    actions = forward[:warmup]
    for index, action in enumerate(forward[warmup:]):
        actions += [action, backward[index]]
    return actions + backward[len(forward[warmup:]) :]


def build(name: str, stages: int, micros: int, chunks: int = 1) -> Schedule:
    """Return the schedule called `name` in `parallel.schedule`: gpipe, 1f1b or interleaved.

    Raises ConfigError for an unknown name, or a number of chunks the schedule cannot use.
    """
    simple: dict[str, Callable[[int, int], Schedule]] = {"gpipe": gpipe, "1f1b": one_f_one_b}
    if name != "interleaved" and name not in simple:
        raise ConfigError(f"parallel.schedule={name} is unknown.{did_you_mean(name, [*simple, 'interleaved'])}")
    if name in simple and chunks != 1:
        raise ConfigError(
            f"parallel.virtual_stages={chunks} needs parallel.schedule=interleaved; with {name} write "
            "parallel.virtual_stages=1."
        )
    if name == "interleaved" and chunks < 2:
        raise ConfigError(
            "parallel.schedule=interleaved needs parallel.virtual_stages of 2 or more; for one chunk per stage write "
            "parallel.schedule=1f1b."
        )
    return simple[name](stages, micros) if name in simple else interleaved(stages, micros, chunks)


def check(schedule: Schedule, chunks: int) -> None:
    """Prove that a schedule is complete and can run; raise ValueError with the first fault otherwise.

    Proved: every (micro, chunk) has one forward on each stage and, unless there are no backward passes at all, one
    backward; every action finds its inputs, without deadlock, given channels that never block a sender.
    """
    micros = 1 + max((action.micro for actions in schedule for action in actions), default=-1)
    kinds = sorted({action.kind for actions in schedule for action in actions} | {Kind.F})
    wanted = {Action(kind, micro, chunk) for kind in kinds for micro in range(micros) for chunk in range(chunks)}
    for stage, actions in enumerate(schedule):
        if len(actions) != len(set(actions)):
            raise ValueError(f"stage {stage} runs {next(a for a in actions if actions.count(a) > 1)} more than once")
        if set(actions) != wanted:
            raise ValueError(f"stage {stage} misses or invents {min(set(actions) ^ wanted)}")
    simulate(schedule, chunks, lambda stage, action: 1.0)


def simulate(
    schedule: Schedule, chunks: int, duration: Callable[[int, Action], float], transfer: float = 0.0
) -> list[list[Span]]:
    """Time a schedule: return (start, end) of every action, shaped like `schedule`.

    `duration(stage, action)` is the time of one action, `transfer` that of one message between two stages, which
    delays the receiver alone. Raises ValueError naming the blocked actions when the schedule deadlocks.
    """
    stages = len(schedule)
    ends: list[dict[Action, float]] = [{} for _ in schedule]
    spans: list[list[Span]] = [[] for _ in schedule]
    runnable = list(range(stages))
    while runnable:
        stage = runnable.pop()
        while len(spans[stage]) < len(schedule[stage]):
            action = schedule[stage][len(spans[stage])]
            ready = _ready_time(chunks, ends, stage, action, transfer)
            if ready is None:
                break
            start = max(ready, spans[stage][-1][1] if spans[stage] else 0.0)
            end = start + duration(stage, action)
            spans[stage].append((start, end))
            ends[stage][action] = end
            after = target(stages, chunks, stage, action)
            if after is not None and after[0] != stage:
                runnable.append(after[0])
    blocked = [(s, schedule[s][len(spans[s])]) for s in range(stages) if len(spans[s]) < len(schedule[s])]
    if blocked:
        raise ValueError("deadlock: " + ", ".join(f"stage {stage} waits at {action}" for stage, action in blocked))
    return spans


def _ready_time(
    chunks: int, ends: list[dict[Action, float]], stage: int, action: Action, transfer: float
) -> float | None:
    """Return when the inputs of `action` are there, or None while one has not been computed."""
    ready = 0.0
    if action.kind is Kind.B:
        own = ends[stage].get(Action(Kind.F, action.micro, action.chunk))
        if own is None:
            return None
        ready = own
    before = source(len(ends), chunks, stage, action)
    if before is not None:
        other, needed = before
        end = ends[other].get(needed)
        if end is None:
            return None
        ready = max(ready, end + (transfer if other != stage else 0.0))
    return ready


def peak_in_flight(schedule: Schedule) -> list[int]:
    """Return, per stage, the largest number of (micro, chunk) forwards of a training schedule awaiting backward."""
    peaks = []
    for actions in schedule:
        in_flight = peak = 0
        for action in actions:
            in_flight += 1 if action.kind is Kind.F else -1
            peak = max(peak, in_flight)
        peaks.append(peak)
    return peaks
