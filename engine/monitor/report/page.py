"""The whole page: one file that opens anywhere, with its style, its script and its data inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine import __version__
from engine.monitor.report import charts, compare, decisions, figures, setup
from engine.monitor.report.html import Html, join, moment, script_json, tag
from engine.monitor.report.read import Run
from engine.monitor.report.series import run_data

_HERE = Path(__file__).parent
_LINKS = (("pipeline", "Pipeline"), ("step-time", "Step time"), ("data", "Data"), ("ledger", "Ledger"),
          ("checkpoints", "Checkpoints"), ("environment", "Environment"), ("config", "Configuration"))  # fmt: skip
_COMPARED = (("runs", "Runs"), ("charts", "Charts"), ("differences", "Settings"), ("each", "Each run"))
_LOGO = Html('<svg viewBox="0 0 26 18" aria-hidden="true">'
             '<path d="M1 12h5l1 3H2zM9 10h8l1.500 5h-11zM20 12h5l-1 3h-5z"/>'
             '<path d="M12.300 1v7.500H7.500zM13.700 3l4.500 5.500h-4.500z"/></svg>')  # fmt: skip


def render(runs: Sequence[Run], now: float) -> str:
    """Return the page for one run, or comparing several; `now` is when it was made, in seconds since 1970."""
    data = [run_data(run) for run in runs]
    chosen = charts.choose(data)
    script = Html((_HERE / "chart.js").read_text() + (_HERE / "page.js").read_text())
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Nothing may be fetched, and no script runs but this one, whatever a run's files hold.
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs: " + ", ".join(run.name for run in runs[:4])
    head = join([
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{title} · Trimaran"),
        tag("style", Html((_HERE / "page.css").read_text())),
    ])  # fmt: skip
    panels = tag("div", charts.figures(chosen, data), class_="cards", data_panel="charts")
    body = _one(runs[0], panels) if len(runs) == 1 else _several(runs, panels)
    payload = {"runs": data, "charts": [charts.plain(chart) for chart in chosen]}
    page = join([
        _top(runs, title), _bar(len(runs) > 1), tag("main", _notices(runs), _without_script(), body), _footer(now),
        tag("script", script_json(payload), type="application/json", id="data"), tag("script", script),
    ])  # fmt: skip
    return f"<!doctype html>\n{tag('html', tag('head', head), tag('body', page), lang='en')}\n"


def _one(run: Run, panels: Html) -> Html:
    sections = (
        setup.pipeline, figures.step_time, figures.profiled, setup.data, decisions.ledger, decisions.checkpoints,
        setup.environment, setup.config,
    )  # fmt: skip
    below = [section(run) for section in sections]
    return join([figures.tiles(run), panels, tag("h2", "How it ran"), tag("div", *below, class_="cards")])


def _several(runs: Sequence[Run], panels: Html) -> Html:
    each = [
        tag("details", tag("summary", run.name), figures.tiles(run), tag("div", setup.pipeline(run),
            figures.step_time(run), figures.profiled(run), setup.data(run), decisions.ledger(run),
            decisions.checkpoints(run), setup.environment(run), class_="cards"))
        for run in runs
    ]  # fmt: skip
    overview = tag("div", compare.overview(runs), class_="cards first")
    differing = tag("div", compare.settings(runs), class_="cards")
    return join([overview, tag("h2", "Curves"), panels, tag("h2", "Settings"), differing,
                 tag("h2", "Each run", data_panel="each"), *each])  # fmt: skip


def _top(runs: Sequence[Run], title: str) -> Html:
    brand = tag("div", _LOGO, "Trimaran", class_="brand")
    if len(runs) > 1:
        return tag("header", brand, tag("h1", title), class_="top")
    words, kind = figures.status(runs[0])
    return tag(
        "header", brand, tag("h1", runs[0].name, tag("span", words, class_=f"chip {kind}")),
        tag("p", " · ".join(_about(runs[0])), class_="about"), class_="top",
    )  # fmt: skip


def _about(run: Run) -> list[str]:
    """Return what the run is, in a few words."""
    known: list[Any] = []
    if run.config:
        axes = ((axis, run.setting(f"parallel.{axis}")) for axis in ("tp", "pp", "dp"))
        layout = [f"{axis} {size}" for axis, size in axes if size is not None]
        known = [run.setting("model.name"), run.setting("precision.dtype"), " \u00d7 ".join(layout)]
    if run.starts:
        environment, ranks = run.starts[-1].get("environment"), run.starts[-1].get("ranks")
        known.append("1 rank" if ranks == 1 else f"{ranks} ranks")
        known.append(environment.get("device") if isinstance(environment, dict) else None)
    return [str(part) for part in [*known, f"last record {moment(run.written)}"] if part]


def _bar(several: bool) -> Html:
    links = [tag("button", words, type="button", data_go=name) for name, words in (_COMPARED if several else _LINKS)]
    axes = [
        tag("button", words, type="button", data_axis=axis, aria_pressed="true" if axis == "step" else "false")
        for axis, words in (("step", "steps"), ("tokens", "tokens"), ("hours", "hours"))
    ]
    smooth = tag("input", id="smooth", type="range", min=0, max=0.95, step=0.01, value=0)
    return tag("nav", tag(
        "div", tag("div", *links, class_="links"),
        tag("button", "reset zoom", type="button", id="reset", hidden="hidden"),
        tag("div", *axes, class_="segment", role="group", aria_label="horizontal axis"),
        tag("label", "smoothing", smooth),
        tag("button", "light / dark", type="button", id="scheme"),
    ))  # fmt: skip


def _notices(runs: Sequence[Run]) -> Html:
    lines = [f"{run.name}: {notice}" if len(runs) > 1 else notice for run in runs for notice in run.notices]
    return tag("ul", *(tag("li", line) for line in lines), class_="notices") if lines else Html("")


def _without_script() -> Html:
    return tag("noscript", tag("p", "The curves are drawn by a script inside this file; it needs no network. Allow "
                                    "it, or read the figures and tables below.", class_="notices"))  # fmt: skip


def _footer(now: float) -> Html:
    return tag("footer", f"Made {moment(now)} by Trimaran {__version__}. Drag over a chart to zoom, double-click "
               "or Esc to go back; a click on a legend hides a curve.")  # fmt: skip
