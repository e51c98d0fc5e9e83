"""What a GPU's time went to, out of a trace of its kernels.

Communication counts where nothing is computed meanwhile. NCCL's kernels run from when this rank is ready until its
peers are, so that waiting for another stage is the time of a kernel that sends or receives.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engine.flight import phases
from engine.monitor.step_parts import BUBBLE, COMMUNICATION, COMPUTE, DATA, OPTIMIZER, PARTS

Span = tuple[float, float, str]  # start, end, part

_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_ORDER = (COMPUTE, OPTIMIZER, COMMUNICATION, BUBBLE, DATA)  # of several at a time, the first one counts


def read_kernels(path: Path, *, pipelined: bool) -> dict[str, float] | None:
    """Return the seconds of each part in a chrome trace of torch's profiler; None where no kernel is in it."""
    spans = classify(json.loads(path.read_bytes())["traceEvents"], pipelined=pipelined)
    return attribute(spans) if any(part != DATA for _, _, part in spans) else None


def classify(events: Iterable[Mapping[str, Any]], *, pipelined: bool) -> list[Span]:
    """Return the part that each kernel belongs to, and the host's waits for data; in seconds."""
    timed = [event for event in events if event.get("ph") == "X" and event.get("dur", 0) > 0]
    marked = {name: [_times(e) for e in timed if e.get("cat") == "gpu_user_annotation" and e.get("name") == name]
              for name in (phases.OPTIMIZER, phases.NORM)}  # fmt: skip

    def inside(span: tuple[float, float], name: str) -> bool:
        middle = sum(span) / 2
        return any(start <= middle <= end for start, end in marked[name])

    spans: list[Span] = []
    for event in timed:
        span, name = _times(event), str(event.get("name", ""))
        if event.get("cat") in _ON_DEVICE:
            if name.startswith("nccl"):
                waits = "SendRecv" in name or (pipelined and inside(span, phases.NORM))
                part = BUBBLE if waits else COMMUNICATION
            else:
                part = OPTIMIZER if inside(span, phases.OPTIMIZER) or inside(span, phases.NORM) else COMPUTE
            spans.append((*span, part))
        elif event.get("cat") == "user_annotation" and name == phases.DATA:
            spans.append((*span, DATA))
    return spans


def attribute(spans: Iterable[Span]) -> dict[str, float]:
    """Return the seconds in which each part is the first of _ORDER that goes on."""
    changes = sorted(
        [(start, 1, part) for start, _, part in spans] + [(end, -1, part) for _, end, part in spans],
        key=lambda change: change[0],
    )
    running, parts, before = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0.0), 0.0
    for moment, change, part in changes:
        now = next((part for part in _ORDER if running[part]), None)
        if now is not None:
            parts[now] += moment - before
        running[part] += change
        before = moment
    return parts


def _times(event: Mapping[str, Any]) -> tuple[float, float]:
    """Return start and end in seconds; traces count microseconds."""
    start = float(event["ts"]) * 1e-6
    return start, start + float(event["dur"]) * 1e-6
