"""profile/summary.json: what the time of the profiled steps went to, rank by rank."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.monitor.step_parts import PARTS

FOLDER, FILE = "profile", "summary.json"


@dataclass(frozen=True)
class Summary:
    """Seconds of steps `first` to `last`: of all together, and of each part by rank (`PARTS`)."""

    first: int
    last: int
    seconds: list[float]
    parts: list[dict[str, float]]

    def shares(self) -> dict[str, float]:
        """Return the share of each part in the time of all ranks, and of what is none of them; they add up to 1."""
        whole = sum(self.seconds) or 1.0
        found = {part: sum(rank[part] for rank in self.parts) / whole for part in PARTS}
        return {**found, "other": max(0.0, 1.0 - sum(found.values()))}

    def describe(self) -> str:
        """Return one line."""
        said = ", ".join(f"{part} {100 * share:.1f}%" for part, share in self.shares().items())
        ranks = f"mean of {len(self.parts)} ranks" if len(self.parts) > 1 else "1 rank"
        return f"profile of steps {self.first} to {self.last}: {said} ({ranks}; communication counts where exposed)"

    def write(self, folder: Path) -> None:
        """Write it into a run's folder, whole or not at all."""
        aside = folder / FOLDER / f"{FILE}.tmp"
        aside.write_text(json.dumps(asdict(self)))
        os.replace(aside, folder / FOLDER / FILE)


def read_summary(folder: Path) -> Summary | None:
    """Return a run's summary, None where it has none; ValueError, TypeError or KeyError for another file."""
    path = folder / FOLDER / FILE
    if not path.exists():
        return None
    found = Summary(**json.loads(path.read_bytes()))
    if not found.parts or len(found.parts) != len(found.seconds):
        raise ValueError(f"{path} is not what a run wrote")
    found.shares()
    return found
