"""The curves of a run as the page's JSON: down-sampled, rounded, and the ways to count how far a run has come."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from engine.monitor.report.events import Event
from engine.monitor.report.read import Run
from engine.monitor.report.table import Table
from engine.monitor.report.thin import extremes, marks

_NOT_CURVES = {"step", "timeline", "skipped", "consumed_samples", "consumed_tokens"}
_GAPS = {"loss", "grad_norm"}  # no number means not finite; elsewhere, not recorded with every step
_KNOTS = 400  # of a piecewise linear way from steps to tokens and hours

Curve = dict[str, list[Any]]  # {"x": steps, "y": values, None where there is no number}


def run_data(run: Run) -> dict[str, Any]:
    """Return what the page draws of a run."""
    return {
        "name": run.name,
        "axes": _axes(run.steps),
        "curves": {**curves(run.steps), **_validation_curves(run.validations)},
        "abandoned": [curves(branch, stretches=300) for branch in run.abandoned],
        "skipped": skipped_steps(run),
        "checkpoints": marks(np.array([record["step"] for record in run.checkpoints], np.int64), run.step).tolist(),
        "events": [_plain(event) for event in run.events],
    }


def curves(table: Table, **options: int) -> dict[str, Curve]:
    """Return every column that holds a number, each thinned by itself."""
    return {
        key: _curve(table.steps, column, gaps=key in _GAPS, **options)
        for key, column in table.columns.items()
        if key not in _NOT_CURVES and np.isfinite(column).any()
    }


def skipped_steps(run: Run) -> list[int]:
    """Return the steps whose update was left out, on all branches, thinned to what a chart can show."""
    steps = [table.steps[table.values("skipped") > 0] for table in (run.steps, *run.abandoned)]
    every = np.unique(np.concatenate(steps))
    return marks(every, int(every[-1]) if len(every) else 0).tolist()


def _curve(steps: np.ndarray, values: np.ndarray, *, gaps: bool, **options: int) -> Curve:
    values = np.where(np.isfinite(values), values, np.nan)
    if not gaps:
        known = ~np.isnan(values)
        steps, values = steps[known], values[known]
    rows = extremes(values, **options)
    return {"x": steps[rows].tolist(), "y": [_round(value) for value in values[rows]]}


def _validation_curves(records: Iterable[dict[str, Any]]) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    for record in records:
        for key, value in record.items():
            if key.startswith(("valid_", "valid/")):
                curve = found.setdefault(key, {"x": [], "y": []})
                curve["x"].append(record["step"])
                curve["y"].append(_round(value) if isinstance(value, (int, float)) else None)
    return {key: curve for key, curve in found.items() if any(value is not None for value in curve["y"])}


def _axes(table: Table) -> dict[str, list[float]]:
    """Return steps, tokens and hours of training at some knots: a place on one axis is the same place on another.

    Hours are the summed time of the steps, without starts, validations, and what was abandoned.
    """
    if not len(table):
        return {"step": [0], "tokens": [0], "hours": [0]}
    rows = np.unique(np.linspace(0, len(table) - 1, min(_KNOTS, len(table))).astype(np.int64))
    hours = np.cumsum(np.nan_to_num(table.values("step_time_s"))) / 3600
    tokens = np.nan_to_num(table.values("consumed_tokens"))
    axes = {"step": table.steps[rows].tolist(), "tokens": tokens[rows].tolist()}
    axes["hours"] = [float(f"{value:.6g}") for value in hours[rows]]
    return axes


def _plain(event: Event) -> dict[str, Any]:
    return {key: value for key, value in vars(event).items() if value not in (None, "")}


def _round(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None
