"""Down-sampling that loses no spike: the lowest and the highest value of every stretch of a curve stay."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

STRETCHES = 1200  # of a curve: more than a chart has pixels


def extremes(values: np.ndarray, stretches: int = STRETCHES) -> np.ndarray:
    """Return the sorted rows of `values` (float [rows]) to draw: at most 3 of each of `stretches` equal parts.

    They are the first, the last, and of each part the lowest, the highest and one that is no number: a gap in the
    curve stays a gap. All rows where there are few.
    """
    rows = len(values)
    if rows <= 2 * stretches:
        return np.arange(rows)
    edges = np.linspace(0, rows, stretches + 1).astype(np.int64)
    kept = {0, rows - 1}
    for begin, end in pairwise(edges.tolist()):
        part = values[begin:end]
        holes = np.isnan(part)
        if holes.any():
            kept.add(begin + int(np.argmax(holes)))
        if not holes.all():
            kept.update((begin + int(np.nanargmin(part)), begin + int(np.nanargmax(part))))
    return np.array(sorted(kept), dtype=np.int64)


def marks(steps: np.ndarray, total: int, stretches: int = STRETCHES) -> np.ndarray:
    """Return at most one of the ascending `steps` (int [n]) for each of `stretches` equal parts of 0..total."""
    if len(steps) <= stretches:
        return steps
    return steps[np.unique(steps * stretches // max(1, total + 1), return_index=True)[1]]
