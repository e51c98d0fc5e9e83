"""Which charts the page has: the keys of each, its unit, and how its axis starts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.monitor.metrics import METRICS, set_key, set_metrics
from engine.monitor.report.html import Html, join, missing, tag


@dataclass(frozen=True)
class Chart:
    """`keys` are drawn over each other; the first one found of the chart's alternatives names the unit."""

    name: str
    title: str
    keys: tuple[str, ...]
    unit: str = ""
    log: bool = False
    wide: bool = False
    zero: bool = False  # the axis begins at 0
    marked: bool = False  # with abandoned branches, skipped updates, rollbacks
    hint: str = ""


_TIMES = ("step_time_s", "compute_time_s", "communication_time_s", "bubble_time_s", "optimizer_time_s", "data_time_s")
_KNOWN = (
    Chart("loss", "Loss", ("loss", "valid_loss"), "nats per token", log=True, wide=True, marked=True),
    Chart("grad_norm", "Gradient norm", ("grad_norm",), log=True, marked=True, hint="global, before clipping"),
    Chart("param_norm", "Norm of the weights", ("param_norm",), hint="global, before the update"),
    Chart("lr", "Learning rate", ("lr",), zero=True, hint="of each step, with what the ledger lowered"),
    Chart("tokens_per_s", "Throughput", ("tokens_per_s",), "tokens/s", zero=True, hint="all ranks together"),
    Chart("mfu_percent", "Model FLOPs utilisation", ("mfu_percent",), "%", zero=True, hint="of the device's peak"),
    Chart("tflops_per_device", "Model FLOP/s", ("tflops_per_device",), "TFLOP/s per rank", zero=True),
    Chart("step_time_s", "Step time", _TIMES, "s", log=True, hint="and its parts"),
    Chart("memory_gib", "Memory", ("memory_gib",), "GiB", zero=True, hint="most that the writing rank has held"),
    Chart("loss_scale", "Loss scale", ("loss_scale",), log=True, hint="fp16"),
    Chart("gpu_power_w", "GPU power", ("gpu_power_w",), "W", zero=True, hint="of the writing rank"),
    Chart("gpu_temperature_c", "GPU temperature", ("gpu_temperature_c",), "°C", hint="of the writing rank"),
    Chart("gpu_clock_mhz", "GPU clock", ("gpu_clock_mhz",), "MHz", zero=True, hint="of the writing rank"),
    Chart("gpu_busy_percent", "GPU utilisation", ("gpu_busy_percent",), "%", zero=True, hint="some kernel ran"),
    Chart("gpu_ecc_errors", "Memory errors", ("gpu_ecc_errors",), zero=True, hint="not corrected, of that GPU"),
    Chart("batch_size", "Global batch", ("batch_size",), "samples", zero=True),
)  # fmt: skip
_ALWAYS = ("loss", "grad_norm", "lr", "tokens_per_s", "memory_gib", "step_time_s")  # a page without them says so
_WHERE_VARIED = ("loss_scale", "batch_size")
_SET_CHARTS = (
    ("loss", "Validation sets", "nats per token"),
    ("bits_per_byte", "Validation sets, by bytes", "bits per byte"),
)
_ELSEWHERE = {"tokens_per_s_per_device", "valid_perplexity", "alerts"}  # follow from others


def choose(runs: Sequence[dict[str, Any]]) -> list[Chart]:
    """Return the charts for these runs (`series.run_data`): the known ones, then one for every other key found."""
    found = {key: curve for run in runs for key, curve in run["curves"].items()}
    charts = [chart for chart in _KNOWN if _wanted(chart, found, runs)]
    if len(runs) > 1:  # the parts of a step would hide the runs
        charts = [replace(chart, keys=chart.keys[:1], hint="") if chart.keys is _TIMES else chart for chart in charts]
    charts += _of_sets(found, several=len(runs) > 1)
    shown = {key for chart in [*_KNOWN, *charts] for key in chart.keys} | _ELSEWHERE
    for key in sorted(key for key in set(found) - shown if not key.startswith("valid/")):
        validates = key.startswith("valid_loss")
        hint = METRICS[key].meaning if key in METRICS else ""
        charts.append(Chart(key, key.replace("_", " "), (key,), "nats per token" if validates else "", hint=hint))
    return charts


def _of_sets(found: dict[str, Any], *, several: bool) -> list[Chart]:
    """Return the charts of the sets of data.valid: over all sets, or one of each where several runs are compared.

    Perplexity follows from the loss.
    """
    charts = []
    for metric, title, unit in _SET_CHARTS:
        keys = [key for name in sorted(set_metrics(dict.fromkeys(found, 0))) if (key := set_key(name, metric)) in found]
        for number, chosen in enumerate([(key,) for key in keys] if several else [tuple(keys)] if keys else []):
            which = f": {chosen[0].split('/')[1]}" if several else ""
            charts.append(Chart(f"sets_{metric}_{number}", title + which, chosen, unit, hint="of data.valid"))
    return charts


def _wanted(chart: Chart, found: dict[str, Any], runs: Sequence[dict[str, Any]]) -> bool:
    if chart.name in _WHERE_VARIED:
        return any(len(set(run["curves"].get(chart.name, {"y": []})["y"])) > 1 for run in runs)
    if chart.name == "tflops_per_device" and "mfu_percent" in found:
        return False  # the same curve
    return chart.name in _ALWAYS or chart.name in found


def figures(charts: Sequence[Chart], runs: Sequence[dict[str, Any]]) -> Html:
    """Return the panels, in two columns; the last one takes both where it would stand alone."""
    halves = sum(not chart.wide for chart in charts)
    return join(_figure(chart, runs, wide=chart.wide or (halves % 2 == 1 and chart is charts[-1])) for chart in charts)


def _figure(chart: Chart, runs: Sequence[dict[str, Any]], *, wide: bool) -> Html:
    """Return the panel that the page's script draws into."""
    has = any(key in run["curves"] for run in runs for key in chart.keys)
    unit = tag("span", chart.unit, class_="unit") if chart.unit else ""
    buttons = [
        tag("button", "log", type="button", data_do="log", title="logarithmic axis", aria_pressed=_bool(chart.log)),
        tag("button", "clip", type="button", data_do="clip", title="scale to 98% of the values, outliers run out",
            aria_pressed="false"),
    ]  # fmt: skip
    head = tag(
        "figcaption", tag("h3", chart.title, unit), tag("p", chart.hint, class_="hint"),
        tag("div", *(buttons if has else []), class_="buttons"),
    )  # fmt: skip
    body = tag("div", class_="plot") if has else missing("not recorded")
    return tag(
        "figure", head, tag("div", class_="legend"), body, class_="card chart" + " wide" * wide,
        data_chart=chart.name,
    )  # fmt: skip


def plain(chart: Chart) -> dict[str, Any]:
    """Return a chart for the page's script."""
    return asdict(chart)


def _bool(value: bool) -> str:
    return "true" if value else "false"
