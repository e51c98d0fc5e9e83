"""Which layers live on which virtual stage: contiguous, balanced, the embedding and the head weighted in."""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import ConfigError

_UNIT = 1000  # costs are compared as integers, in thousandths of a layer, so that ties are exact


def split_layers(
    layers: int,
    parts: int,
    stage_layers: Sequence[int] | None = None,
    embedding_cost: float = 0.0,
    head_cost: float = 0.0,
) -> list[tuple[int, int]]:
    """Return ``(start, stop)`` of each part, in model order; together they cover 0..layers, each has a layer.

    `parts` is pp times virtual_stages. The costs are those of the embedding (on the first part) and of the head (on
    the last one) in units of one layer. Without `stage_layers` the costliest part is as cheap as can be; among such
    splits the one whose parts differ least (in sum of squares) wins, then the one with the lighter early parts,
    which hold the most micro-batches in flight. `stage_layers` gives the size of each part instead.
    Raises ConfigError when that is impossible.
    """
    if parts > layers:
        raise ConfigError(
            f"parallel.pp*virtual_stages = {parts} parts, but model.layers={layers}: each part needs a layer; "
            f"use at most {layers} parts."
        )
    if stage_layers is not None:
        return _explicit(layers, parts, list(stage_layers))
    base = [0] * parts
    base[0] += round(embedding_cost * _UNIT)
    base[-1] += round(head_cost * _UNIT)
    return _bounds(_balanced(layers, base))


def _explicit(layers: int, parts: int, sizes: list[int]) -> list[tuple[int, int]]:
    written = "[" + ",".join(map(str, sizes)) + "]"
    if len(sizes) != parts:
        raise ConfigError(
            f"parallel.stage_layers={written} has {len(sizes)} entries; write {parts}, one for each of "
            "pp*virtual_stages parts."
        )
    if min(sizes) < 1:
        raise ConfigError(f"parallel.stage_layers={written} leaves a part empty; write at least 1 everywhere.")
    if sum(sizes) != layers:
        raise ConfigError(
            f"parallel.stage_layers={written} sums to {sum(sizes)}, but model.layers={layers}; make them equal."
        )
    return _bounds(sizes)


def _bounds(sizes: list[int]) -> list[tuple[int, int]]:
    stops = [sum(sizes[: part + 1]) for part in range(len(sizes))]
    return list(zip([0, *stops[:-1]], stops, strict=True))


def _balanced(layers: int, base: list[int]) -> list[int]:
    """Return the sizes of the parts, `base` being the cost of each part without layers."""
    parts = len(base)
    peak = _smallest_peak(layers, base)
    room = [min((peak - cost) // _UNIT, layers) for cost in base]  # most layers each part may hold
    # best[n]: (sum of squared costs, sizes) of the parts seen so far with n layers; comparing sizes breaks ties.
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for part in range(parts):
        longer: dict[int, tuple[int, list[int]]] = {}
        for placed, (squares, sizes) in best.items():
            for size in range(1, min(room[part], layers - placed) + 1):
                candidate = (squares + (base[part] + size * _UNIT) ** 2, [*sizes, size])
                if placed + size not in longer or candidate < longer[placed + size]:
                    longer[placed + size] = candidate
        best = longer
    return best[layers][1]


def _smallest_peak(layers: int, base: list[int]) -> int:
    """Return the least possible cost of the costliest part.

    Parts with a limit L hold floor((L - base) / unit) layers each, so L is feasible when every part can hold one and
    together they hold all; the least L is one of base + size * unit.
    """
    candidates = sorted({cost + size * _UNIT for cost in set(base) for size in range(1, layers + 1)})
    floor = max(base) + _UNIT
    return next(
        limit for limit in candidates if limit >= floor and sum((limit - cost) // _UNIT for cost in base) >= layers
    )
