"""A pipeline's timeline as a picture: a row for each stage, a cell for each action, gaps where it waits."""

from __future__ import annotations

import math
import statistics

from engine.monitor.report.html import Html, duration, join, missing, number, tag
from engine.monitor.report.pipeline import SECONDS, Timeline
from engine.parallel.pipeline.schedule import Action, Kind, Span, peak_in_flight

_ROW, _GAP, _LEFT, _RIGHT, _TOP, _BOTTOM = 30, 8, 150, 92, 6, 34  # pixels
_WIDTH, _WIDEST = 1120, 16000
_LABEL = 13  # narrowest cell that holds its micro-batch's number
_MOST_CELLS = 4000


def draw(timeline: Timeline) -> Html:
    """Return the picture, or a line where there is too much to draw."""
    cells = sum(map(len, timeline.schedule))
    if cells > _MOST_CELLS:
        return missing(f"{cells:,} actions of {timeline.stages} stages are too many to draw")
    return tag("div", _svg(timeline), class_="scroll")


def legend(backward: str, chunks: int) -> Html:
    """Return what the colours mean; `backward` is what is to be said of backward passes."""
    kinds = [("f", "forward"), ("b", backward), ("idle", "waiting")]
    keys = [tag("span", tag("i", class_=f"swatch {name}"), words) for name, words in kinds]
    if chunks > 1:
        keys.append(tag("span", "paler: later chunks of the model"))
    return tag("div", *keys, class_="keys")


def _svg(timeline: Timeline) -> Html:
    stages, room = timeline.stages, _WIDTH - _LEFT - _RIGHT
    typical = statistics.median(end - start for spans in timeline.spans for start, end in spans)
    wanted = timeline.makespan / typical * 16 if typical > 0 else room  # for cells that hold a number
    scale = (room if wanted < 1.3 * room else min(wanted, _WIDEST)) / timeline.makespan
    width, height = _LEFT + timeline.makespan * scale + _RIGHT, _TOP + stages * (_ROW + _GAP) + _BOTTOM
    peaks = peak_in_flight(timeline.schedule)
    rows = join(_stage_row(timeline, stage, peaks[stage], scale) for stage in range(stages))
    return tag(
        "svg", _axis(timeline, scale, height), rows, class_="timeline", width=f"{width:.0f}", height=height,
        viewBox=f"0 0 {width:.0f} {height}", role="img", aria_label=f"Timeline of {stages} pipeline stages",
    )  # fmt: skip


def _stage_row(timeline: Timeline, stage: int, peak: int, scale: float) -> Html:
    top = _TOP + stage * (_ROW + _GAP)
    middle, right = top + _ROW / 2 + 4, _LEFT + timeline.makespan * scale
    cells = zip(timeline.schedule[stage], timeline.spans[stage], strict=True)
    return join([
        tag("text", f"stage {stage}", class_="name", x=0, y=middle - 5),
        tag("text", f"at most {peak} in flight", class_="note", x=0, y=middle + 8),
        tag("rect", class_="idle", x=_LEFT, y=top, width=f"{timeline.makespan * scale:.1f}", height=_ROW, rx=4),
        *(_cell(timeline, action, span, top, scale) for action, span in cells),
        tag("text", f"{100 * timeline.idle(stage):.1f}% idle", class_="note", x=f"{right + 10:.1f}", y=middle),
    ])  # fmt: skip


def _cell(timeline: Timeline, action: Action, span: Span, top: int, scale: float) -> Html:
    (start, end), chunks = span, timeline.chunks
    left, width = _LEFT + start * scale, max(0.8, (end - start) * scale - 1)
    what = "forward" if action.kind is Kind.F else "backward"
    chunk = f", chunk {action.chunk}" if chunks > 1 else ""
    title = tag(
        "title", f"{what} of micro-batch {action.micro}{chunk}: {_said(timeline, start)} to {_said(timeline, end)}"
    )
    fade = f"{1 - 0.55 * action.chunk / max(1, chunks - 1):.2f}" if chunks > 1 else None
    box = tag("rect", title, x=f"{left:.1f}", y=top, width=f"{width:.1f}", height=_ROW, rx=3,
              class_=str(action.kind.value).lower(), fill_opacity=fade)  # fmt: skip
    label = str(action.micro)
    if width < _LABEL or width < 7 * len(label):
        return box
    return join([box, tag("text", label, class_="micro", x=f"{left + width / 2:.1f}", y=top + _ROW / 2 + 4)])


def _axis(timeline: Timeline, scale: float, height: int) -> Html:
    step, bottom, ticks = _nice(90 / scale), height - _BOTTOM, []
    for index in range(int(timeline.makespan / step) + 1):
        x = f"{_LEFT + index * step * scale:.1f}"
        ticks += [
            tag("line", class_="grid", x1=x, x2=x, y1=_TOP, y2=bottom),
            tag("text", _said(timeline, index * step), class_="tick", x=x, y=bottom + 12),
        ]
    words = "time since the first action" + ("" if timeline.unit == SECONDS else f", in {timeline.unit}")
    return join([*ticks, tag("text", words, class_="note", x=_LEFT, y=height - 4)])


def _said(timeline: Timeline, moment: float) -> str:
    return duration(moment) if timeline.unit == SECONDS else number(round(moment, 2))


def _nice(least: float) -> float:
    """Return the smallest of ... 0.1, 0.2, 0.5, 1, 2, 5 ... that is not below `least`."""
    size = 10.0 ** math.floor(math.log10(least))
    return next(size * factor for factor in (1, 2, 5, 10) if size * factor >= least)
