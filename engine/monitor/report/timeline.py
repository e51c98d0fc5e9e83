"""The pipeline schedule as a picture: the engine's own list of actions, timed by its own simulator, and its bubble."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.config import ModelConfig, ParallelConfig
from engine.errors import ConfigError
from engine.monitor.flops import matrix_weights
from engine.monitor.report.html import Html, join, missing, number, tag
from engine.parallel.pipeline.partition import split_layers
from engine.parallel.pipeline.schedule import (
    Action,
    Kind,
    Schedule,
    Span,
    build,
    peak_in_flight,
    simulate,
    virtual_stage,
)

_ROW, _GAP, _LEFT, _RIGHT, _TOP, _BOTTOM = 30, 8, 150, 92, 6, 34  # pixels
_WIDTH, _WIDEST = 1120, 16000
_LABEL = 13  # narrowest cell that holds its micro-batch's number
_MOST_CELLS = 4000


@dataclass(frozen=True)
class Plan:
    """A schedule and when each action runs, in units of the forward pass of a stage's average share of the model."""

    name: str
    schedule: Schedule
    spans: list[list[Span]]
    chunks: int
    micros: int
    backward: float  # cost of a backward pass in forward passes

    @property
    def makespan(self) -> float:
        """The time from the first action to the last."""
        return max(end for spans in self.spans for _, end in spans)

    def idle(self, stage: int) -> float:
        """Return the share of the time that a stage waits."""
        return 1 - sum(end - start for start, end in self.spans[stage]) / self.makespan

    @property
    def bubble(self) -> float:
        """The share of all stages' time spent waiting."""
        return sum(map(self.idle, range(len(self.spans)))) / len(self.spans)


def plan(config: Mapping[str, Any], vocab: int | None, ranks: int | None) -> Plan:
    """Return the planned schedule of a configuration as plain mappings; ConfigError when it cannot be built.

    `ranks` of the run give parallel.dp where the configuration leaves it open (1 when unknown). A backward pass is
    taken for two forward passes, three with full recomputation; messages for instant; stages cost their layers and
    the output projection. Other kinds of keys and values raise KeyError, TypeError or ValueError.
    """
    parallel, model = _known(ParallelConfig, config["parallel"]), _known(ModelConfig, config["model"])
    stages, chunks = parallel.pp, parallel.virtual_stages
    dp = parallel.dp or max(1, (ranks or 1) // (parallel.tp * stages * parallel.cp))
    train = config["train"]
    micros = max(1, int(train["global_batch"]) // (int(train["micro_batch"]) * dp))
    if 2 * micros * chunks * stages > 1_000_000:
        raise ConfigError(f"{micros:,} micro-batches are too many to draw.")
    costs = _stage_costs(model, parallel, vocab or model.vocab_size or 0)
    backward = 3.0 if parallel.recompute == "full" else 2.0
    schedule = build(parallel.schedule, stages, micros, chunks)

    def seconds(stage: int, action: Action) -> float:
        return costs[virtual_stage(stages, stage, action.chunk)] * (1.0 if action.kind is Kind.F else backward)

    return Plan(parallel.schedule, schedule, simulate(schedule, chunks, seconds), chunks, micros, backward)


def _known(kind: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Make a dataclass of the keys it knows: the run may be of another version."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: value for key, value in values.items() if key in names})


def _stage_costs(model: ModelConfig, parallel: ParallelConfig, vocab: int) -> list[float]:
    """Return the forward cost of every virtual stage, 1 on average over the stages of one chunk each."""
    block = matrix_weights(model, 0) / model.layers
    head = vocab * model.hidden / block
    parts = parallel.pp * parallel.virtual_stages
    ranges = split_layers(model.layers, parts, parallel.stage_layers, 0.0, head)
    costs = [float(stop - start) for start, stop in ranges]
    costs[-1] += head
    return [cost * parallel.pp / sum(costs) for cost in costs]


# -- drawing -------------------------------------------------------------------------------------------------


def draw(planned: Plan) -> Html:
    """Return the panel's content: what the bubble is, and the timeline where it can be drawn."""
    stages = len(planned.schedule)
    ideal = (stages - 1) / (stages - 1 + planned.micros * planned.chunks)
    told = tag(
        "p", tag("b", f"{100 * planned.bubble:.1f}%"), f" of the stages' time is bubble as planned: {planned.name}, "
        f"{stages} stages, {planned.micros} micro-batches"
        + (f", {planned.chunks} chunks a stage" if planned.chunks > 1 else "")
        + f". With equal stages the least is {100 * ideal:.1f}%.", class_="lead",
    )  # fmt: skip
    cells = sum(map(len, planned.schedule))
    if cells > _MOST_CELLS:
        return join([told, missing(f"{cells:,} actions are too many to draw; each of {stages} stages runs "
                                   f"{len(planned.schedule[0]):,} of them.")])  # fmt: skip
    return join([told, _legend(planned), tag("div", _svg(planned), class_="scroll")])


def _legend(planned: Plan) -> Html:
    kinds = [("f", "forward"), ("b", f"backward (taken for {planned.backward:g} forward passes)"), ("idle", "waiting")]
    keys = [tag("span", tag("i", class_=f"swatch {name}"), words) for name, words in kinds]
    if planned.chunks > 1:
        keys.append(tag("span", "paler: later chunks of the model"))
    return tag("div", *keys, class_="keys")


def _svg(planned: Plan) -> Html:
    stages, shortest = len(planned.schedule), min(end - start for spans in planned.spans for start, end in spans)
    scale = (_WIDTH - _LEFT - _RIGHT) / planned.makespan
    scale = min(max(scale, 16 / shortest), max(scale, (_WIDEST - _LEFT - _RIGHT) / planned.makespan))
    width, height = _LEFT + planned.makespan * scale + _RIGHT, _TOP + stages * (_ROW + _GAP) + _BOTTOM
    peaks = peak_in_flight(planned.schedule)
    rows = join(_stage_row(planned, stage, peaks[stage], scale) for stage in range(stages))
    return tag(
        "svg", _axis(planned, scale, height), rows, class_="timeline", width=f"{width:.0f}", height=height,
        viewBox=f"0 0 {width:.0f} {height}", role="img", aria_label=f"Timeline of {stages} pipeline stages",
    )  # fmt: skip


def _stage_row(planned: Plan, stage: int, peak: int, scale: float) -> Html:
    top = _TOP + stage * (_ROW + _GAP)
    middle, right = top + _ROW / 2 + 4, _LEFT + planned.makespan * scale
    cells = zip(planned.schedule[stage], planned.spans[stage], strict=True)
    return join([
        tag("text", f"stage {stage}", class_="name", x=0, y=middle - 5),
        tag("text", f"at most {peak} in flight", class_="note", x=0, y=middle + 8),
        tag("rect", class_="idle", x=_LEFT, y=top, width=f"{planned.makespan * scale:.1f}", height=_ROW, rx=4),
        *(_cell(action, span, planned.chunks, top, scale) for action, span in cells),
        tag("text", f"{100 * planned.idle(stage):.1f}% idle", class_="note", x=f"{right + 10:.1f}", y=middle),
    ])  # fmt: skip


def _cell(action: Action, span: Span, chunks: int, top: int, scale: float) -> Html:
    start, end = span
    left, width = _LEFT + start * scale, max(0.8, (end - start) * scale - 1)
    what = "forward" if action.kind is Kind.F else "backward"
    chunk = f", chunk {action.chunk}" if chunks > 1 else ""
    title = tag("title", f"{what} of micro-batch {action.micro}{chunk}: {start:.2f} to {end:.2f}")
    fade = f"{1 - 0.55 * action.chunk / max(1, chunks - 1):.2f}" if chunks > 1 else None
    box = tag("rect", title, x=f"{left:.1f}", y=top, width=f"{width:.1f}", height=_ROW, rx=3,
              class_=str(action.kind.value).lower(), fill_opacity=fade)  # fmt: skip
    label = str(action.micro)
    if width < _LABEL or width < 7 * len(label):
        return box
    return join([box, tag("text", label, class_="micro", x=f"{left + width / 2:.1f}", y=top + _ROW / 2 + 4)])


def _axis(planned: Plan, scale: float, height: int) -> Html:
    step = _nice(planned.makespan * 90 / (planned.makespan * scale))
    bottom = height - _BOTTOM
    ticks = []
    for index in range(int(planned.makespan / step) + 1):
        x = f"{_LEFT + index * step * scale:.1f}"
        ticks += [
            tag("line", class_="grid", x1=x, x2=x, y1=_TOP, y2=bottom),
            tag("text", number(index * step), class_="tick", x=x, y=bottom + 12),
        ]
    words = "time, in forward passes of an average stage"
    return join([*ticks, tag("text", words, class_="note", x=_LEFT, y=height - 4)])


def _nice(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10, ... that is not below `least`."""
    size = 1.0
    while True:
        for factor in (1.0, 2.0, 5.0):
            if size * factor >= least:
                return size * factor
        size *= 10
