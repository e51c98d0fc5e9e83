"""Training records as columns, and as branches: a run that was rolled back holds some steps more than once."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Table:
    """Consecutive training records. `steps` is int64 [rows]; each column is float64 [rows], NaN where it has no number.

    A step counts the steps made so far: the record of the first step has step 1.
    """

    steps: np.ndarray
    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.steps)

    def __contains__(self, key: str) -> bool:
        return key in self.columns

    def values(self, key: str) -> np.ndarray:
        """Return a column, NaN in all rows when no record holds it."""
        return self.columns.get(key, np.full(len(self), np.nan))

    def rows(self, keep: Any) -> Table:
        """Return the rows that numpy selects by `keep`."""
        return Table(self.steps[keep], {key: column[keep] for key, column in self.columns.items()})


def to_table(records: Iterable[Mapping[str, Any]]) -> Table:
    """Return the records as a table in their order; values that are no numbers become NaN."""
    steps: array[int] = array("q")
    columns: dict[str, array[float]] = {}
    for record in records:
        for key, value in record.items():
            if key == "step":
                continue
            column = columns.get(key)
            if column is None:
                column = columns[key] = array("d")
            column.extend([np.nan] * (len(steps) - len(column)))  # records before this one did not have the key
            column.append(float(value) if isinstance(value, (int, float)) else np.nan)
        steps.append(int(record["step"]))
    for column in columns.values():
        column.extend([np.nan] * (len(steps) - len(column)))
    return Table(
        np.array(steps, dtype=np.int64),
        {key: np.array(column, dtype=np.float64) for key, column in columns.items()},
    )


def branches(table: Table) -> tuple[Table, list[Table]]:
    """Return the steps that the run stands on, each once and in order, and the parts that were abandoned, oldest first.

    Where the step of a record is not above the one before it, the run went back: what had been logged from that step
    on is a branch of its own, and the later records take its place.
    """
    if len(table) == 0:
        return table, []
    starts = np.flatnonzero(np.diff(table.steps) <= 0) + 1
    kept, left = np.arange(starts[0] if len(starts) else len(table)), []
    for start, stop in zip(starts, [*starts, len(table)][1:], strict=True):
        cut = int(np.searchsorted(table.steps[kept], table.steps[start]))
        left.append(table.rows(kept[cut:]))
        kept = np.concatenate([kept[:cut], np.arange(start, stop)])
    return table.rows(kept), left
