"""What a check found: a line for people, and how bad it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

OK, WARNING, FAULT = "ok", "warning", "fault"


@dataclass(frozen=True)
class Finding:
    """One line: its `level`, the `topic` that was looked at, and what was found with, unless ok, what to do."""

    level: str
    topic: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<8}{self.topic:<11}{self.text}"


def by_value(values: Sequence[str], names: Sequence[str]) -> str:
    """Return "x on a, b; y on c": who has which value; names that occur several times are said once."""
    holders: dict[str, list[str]] = defaultdict(list)
    for value, name in zip(values, names, strict=True):
        if name not in holders[value]:
            holders[value].append(name)
    return "; ".join(f"{value} on {shorten(found)}" for value, found in holders.items())


def shorten(names: Iterable[object], most: int = 4) -> str:
    """Return the names with commas, those beyond `most` as a number."""
    found = [str(name) for name in names]
    rest = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + rest


def size(number: float) -> str:
    """Return a number of bytes in a unit that reads well."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number / 2**10:.3g} KiB"
