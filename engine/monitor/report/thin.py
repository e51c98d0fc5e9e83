"""Down-sampling that loses no spike: the lowest and the highest value of every stretch of a curve stay."""

from __future__ import annotations

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
    length = -(-rows // stretches)
    padded = np.concatenate([values, np.full(-rows % length, values[-1])]).reshape(-1, length)
    holes = np.isnan(padded)
    lowest, highest = np.where(holes, np.inf, padded).argmin(axis=1), np.where(holes, -np.inf, padded).argmax(axis=1)
    first_hole = holes.argmax(axis=1)  # 0 where there is none, which is a row like any other
    begins = np.arange(len(padded)) * length
    kept = np.concatenate([[0, rows - 1], begins + lowest, begins + highest, (begins + first_hole)[holes.any(axis=1)]])
    return np.unique(np.minimum(kept, rows - 1))


def marks(steps: np.ndarray, total: int, stretches: int = STRETCHES) -> np.ndarray:
    """Return at most one of the ascending `steps` (int [n]) for each of `stretches` equal parts of 0..total."""
    if len(steps) <= stretches:
        return steps
    return steps[np.unique(steps * stretches // max(1, total + 1), return_index=True)[1]]
