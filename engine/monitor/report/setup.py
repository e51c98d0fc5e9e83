"""With what a run was made: its pipeline schedule, data, configuration and machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from engine.errors import EngineError
from engine.monitor.report import timeline
from engine.monitor.report.events import Entry
from engine.monitor.report.html import DASH, Html, bar, card, join, missing, moment, number, table, tag
from engine.monitor.report.pipeline import Timeline, backward_cost, measured, planned
from engine.monitor.report.read import Run
from engine.stability.skips import size, union

_SHOWN_STARTS = 12


def pipeline(run: Run) -> Html:
    """Return the schedule as planned and, where the run timed a step, as measured; else why there is nothing."""
    title, name = "Pipeline schedule", "pipeline"
    if not run.config:
        return card(title, missing("the configuration is unknown, and so the schedule"), name=name)
    if run.setting("parallel.pp", 1) == 1:
        return card(title, missing("one stage: no pipeline, no bubble (parallel.pp=1)"), name=name)
    hint = "the schedule that the engine executes: timed by its simulator, and in a step of the run"
    return card(title, _planned(run), _measured(run), hint=hint, name=name)


def _planned(run: Run) -> Html:
    ranks = run.starts[-1].get("ranks") if run.starts else None
    try:
        found = planned(run.config, run.vocab, ranks)
        backward = f"backward (planned as {backward_cost(run.config):g} forward passes)"
        words = (
            f" of the stages' time is bubble as planned: {run.setting('parallel.schedule')}, {found.stages} stages, "
            f"{found.micros} micro-batches{f', {found.chunks} chunks a stage' if found.chunks > 1 else ''}. With equal "
            f"stages the least is {100 * found.least_bubble:.1f}%."
        )
        return join([_lead(found, words), timeline.legend(backward, found.chunks), timeline.draw(found)])
    except (EngineError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        return missing(f"the schedule cannot be planned: {error}")


def _measured(run: Run) -> Html:
    try:
        timed = measured(run.path)
        if timed is None:
            return missing("not measured: no step was timed on every stage (monitor.pipeline_interval)")
        step, found = timed
        words = f" of the stages' time was bubble in step {step:,}, from the first action to the last, as measured."
        return join([_lead(found, words), timeline.draw(found)])
    except (OSError, ValueError, KeyError, TypeError, LookupError, ArithmeticError) as error:
        return missing(f"what the run timed cannot be read: {error!r}")


def _lead(found: Timeline, words: str) -> Html:
    return tag("p", tag("b", f"{100 * found.bubble:.1f}%"), words, class_="lead")


def data(run: Run) -> Html:
    """Return the mixture of the corpora, and the data that rollbacks passed over."""
    title = "Data mixture"
    if not run.config:
        return card(title, missing("the configuration is unknown, and so the data"), name="data")
    paths = run.setting("data.paths") or ["the built-in corpus"]
    try:
        weighted = [(1.0, entry) if isinstance(entry, str) else (float(entry[0]), str(entry[1])) for entry in paths]
    except (TypeError, ValueError, LookupError):
        return card(title, missing(f"data.paths is not understood: {paths}"), name="data")
    whole = sum(weight for weight, _ in weighted)
    tokens = float(run.steps.values("consumed_tokens")[-1]) if len(run.steps) else 0.0
    parts = [(path, weight, f"{number(tokens * weight / whole, 3)} tokens") for weight, path in weighted]
    hint = "by configured weight; the blend keeps these proportions at every step"
    return card(title, bar(parts), _passed_over(run.ledger), hint=hint, name="data")


def _passed_over(ledger: Iterable[Entry]) -> Html:
    actions = [entry.action for entry in ledger if entry.action is not None and entry.action.first < entry.action.stop]
    if not actions:
        return tag("p", "No data were passed over.", class_="hint")
    ranges = union((action.first, action.stop) for action in actions)
    listed = ", ".join(f"{first:,} to {stop - 1:,}" for first, stop in ranges[:20])
    more = f" and {len(ranges) - 20} more ranges" if len(ranges) > 20 else ""
    return tag(
        "p", f"Rollbacks passed over {size(ranges):,} samples, counted as trained: {listed}{more}.", class_="hint"
    )


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every dotted key with its value as text."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield (
                f"{prefix}{key}",
                "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value),
            )


def config(run: Run) -> Html:
    """Return the configuration by groups, with a field that filters it."""
    if not run.config:
        return card("Configuration", missing("unknown: no start and no checkpoint is recorded"), name="config")
    groups = [
        tag(
            "div",
            tag("h4", group),
            tag("dl", *(_pair(key, value) for key, value in flat({group: values}))),
            class_="group",
        )
        for group, values in run.config.items()
    ]
    search = tag(
        "input", type="search", placeholder="filter keys and values", aria_label="filter", data_filter="config"
    )
    return card("Configuration", search, tag("div", *groups, class_="groups"), name="config")


def _pair(key: str, value: str) -> Html:
    return tag("div", tag("dt", key), tag("dd", value), class_="pair")


def environment(run: Run) -> Html:
    """Return what the run was started with, each time."""
    if not run.starts:
        return card("Environment", missing("not recorded (starts.jsonl is missing)"), name="environment", wide=False)
    newest = run.starts[-1].get("environment")
    known = [(key, str(value)) for key, value in newest.items() if value] if isinstance(newest, Mapping) else []
    pairs = tag("dl", *(_pair(key.replace("_", " "), value) for key, value in known))
    rows = [(f"{start['step']:,}", moment(_seconds(start.get("time"))), start.get("ranks", DASH))
            for start in run.starts[-_SHOWN_STARTS:]]  # fmt: skip
    starts = table(["after step", "started", "ranks"], rows, numbers=(0, 2))
    return card("Environment", pairs, starts, hint=f"started {len(run.starts)} time(s)", name="environment", wide=False)


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
