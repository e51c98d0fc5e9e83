"""When the actions of a pipeline run: planned by the engine's own schedule and simulator, and measured by the run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import ModelConfig, ParallelConfig
from engine.errors import ConfigError
from engine.monitor.flops import matrix_weights
from engine.monitor.pipeline_times import FOLDER
from engine.parallel.pipeline.partition import split_layers
from engine.parallel.pipeline.schedule import Action, Kind, Schedule, Span, build, check, simulate, virtual_stage

PASSES, SECONDS = "forward passes of an average stage", "seconds"


@dataclass(frozen=True)
class Timeline:
    """The actions of every stage and when each ran, in `unit`, the first at 0."""

    schedule: Schedule
    spans: list[list[Span]]
    chunks: int
    unit: str  # PASSES or SECONDS

    @property
    def stages(self) -> int:
        return len(self.schedule)

    @property
    def micros(self) -> int:
        """Micro-batches of the step."""
        return 1 + max(action.micro for action in self.schedule[0])

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
        return sum(map(self.idle, range(self.stages))) / self.stages

    @property
    def least_bubble(self) -> float:
        """The bubble of this schedule with stages that cost the same (arXiv 2104.04473, section 2.2)."""
        return (self.stages - 1) / (self.stages - 1 + self.micros * self.chunks)


def planned(config: Mapping[str, Any], vocab: int | None, ranks: int | None) -> Timeline:
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
    backward = backward_cost(config)
    schedule = build(parallel.schedule, stages, micros, chunks)

    def duration(stage: int, action: Action) -> float:
        return costs[virtual_stage(stages, stage, action.chunk)] * (1.0 if action.kind is Kind.F else backward)

    return Timeline(schedule, simulate(schedule, chunks, duration), chunks, PASSES)


def backward_cost(config: Mapping[str, Any]) -> float:
    """Return how many forward passes a backward pass is taken for."""
    return 3.0 if config["parallel"].get("recompute") == "full" else 2.0


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


# -- measured ------------------------------------------------------------------------------------------------


def measured(run: Path) -> tuple[int, Timeline] | None:
    """Return the step that a run timed last, and its timeline; None where not every stage has left its part.

    ValueError, KeyError, TypeError or OSError where what they left is not a timeline.
    """
    parts = [json.loads(path.read_bytes()) for path in sorted((run / FOLDER).glob("stage_*.json"))]
    parts.sort(key=lambda part: part["stage"])
    stages = [part["stage"] for part in parts]
    if not parts or stages != list(range(parts[0]["stages"])) or len({part["step"] for part in parts}) > 1:
        return None
    schedule = [[Action(Kind(kind), micro, chunk) for kind, micro, chunk, _, _ in part["actions"]] for part in parts]
    first = min(start for part in parts for *_, start, _ in part["actions"])
    spans = [[(float(start - first), float(end - first)) for *_, start, end in part["actions"]] for part in parts]
    chunks = 1 + max(action.chunk for action in schedule[0])
    check(schedule, chunks)
    return parts[0]["step"], Timeline(schedule, spans, chunks, SECONDS)
