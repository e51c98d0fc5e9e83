"""Several runs side by side: a table of them, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.monitor.report.figures import results, status
from engine.monitor.report.html import DASH, Html, card, duration, fixed, missing, number, table, tag
from engine.monitor.report.read import Run
from engine.monitor.report.setup import flat

_NAMES_AND_PLACES = ("run.name", "run.root", "data.cache_dir")  # differ in any two runs
_MOST_COLUMNS = 8
_RESULTS = ("loss", "best validation", "tokens", "tokens/s", "time in steps", "rollbacks")


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the settings that are not the same in all runs whose configuration is known, with each run's value."""
    configs = [dict(flat(run.config)) for run in runs]
    known = [config for config in configs if config]
    keys = dict.fromkeys(key for config in known for key in config)
    return {
        key: [config.get(key, DASH) for config in configs]
        for key in keys
        if key not in _NAMES_AND_PLACES and len({config.get(key) for config in known}) > 1
    }


def overview(runs: Sequence[Run]) -> Html:
    """Return a row for each run: where it is, its results, and the settings that tell it from the others."""
    differing = differences(runs)
    shown = list(differing)[:_MOST_COLUMNS]
    head = ["run", "state", "step", *shown, *_RESULTS]
    rows = [
        [_name(index, run), _state(run), _value(run.step, f"{run.step:,}"), *(differing[key][index] for key in shown),
         *_results(run)]
        for index, run in enumerate(runs)
    ]  # fmt: skip
    numbers = [2, *range(len(shown) + 3, len(head))]
    hint = "loss: mean of the last 20 steps; a click on a heading sorts"
    return card("Runs", table(head, rows, numbers=numbers, class_="sortable"), hint=hint, name="runs")


def settings(runs: Sequence[Run]) -> Html:
    """Return the differing settings, a row each."""
    differing = differences(runs)
    if not differing:
        return card("Settings that differ", missing("none: the known configurations are the same"), name="differences")
    rows = [[key, *values] for key, values in differing.items()]
    return card("Settings that differ", table(["key", *(run.name for run in runs)], rows), name="differences")


def _results(run: Run) -> list[Html]:
    found = results(run)
    return [
        _value(found.loss, fixed(found.loss)), _value(found.best, fixed(found.best)),
        _value(found.tokens, number(found.tokens, 3)), _value(found.tokens_per_s, number(found.tokens_per_s, 3)),
        _value(found.useful, duration(found.useful)), _value(found.rollbacks, f"{found.rollbacks:,}"),
    ]  # fmt: skip


def _value(value: Any, said: str) -> Html:
    """Return a number that sorts by its value, whatever it looks like; unknown ones come last."""
    return tag("span", said, data_value="9e99" if value is None else f"{value:.9g}")


def _name(index: int, run: Run) -> Html:
    return tag("span", tag("i", class_=f"swatch c{index % 8}"), tag("b", run.name))


def _state(run: Run) -> Html:
    words, kind = status(run)
    return tag("span", words, class_=f"chip {kind}")
