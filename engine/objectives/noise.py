"""Which tokens of a text are masked or cut out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.objectives.draws import Draws
from engine.objectives.example import Ints

Bools = NDArray[np.bool_]


def noise_count(length: int, share: float) -> int:
    """Return the nearest number of tokens to `share` of `length` that leaves at least one of either kind."""
    return min(max(round(length * share), 1), length - 1)


def span_count(length: int, share: float, mean: float) -> int:
    """Return how many spans T5 cuts out of `length` tokens (arXiv 1910.10683)."""
    noise = noise_count(length, share)
    return min(max(round(noise / mean), 1), noise, length - noise)


def composition(items: int, parts: int, draws: Draws) -> Ints:
    """Return `parts` positive lengths that add up to `items`, each such choice as likely as any other."""
    cuts = draws.choose(items - 1, parts - 1) + 1
    return np.diff(np.concatenate([[0], cuts, [items]]))


def span_mask(length: int, share: float, mean: float, draws: Draws) -> Bools:
    """Return T5's mask [length >= 2], True for noise: kept and noisy spans take turns, a kept one first.

    Exactly `noise_count` tokens in `span_count` spans; lengths of spans and of what is between are `composition`s.
    """
    noise, spans = noise_count(length, share), span_count(length, share, mean)
    kept = composition(length - noise, spans, draws)
    cut = composition(noise, spans, draws)
    lengths = np.stack([kept, cut], axis=1).reshape(-1)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def most_blanks(length: int, share: float) -> int:
    """Return the most spans that `blanks` gives."""
    noise = noise_count(length, share)
    return min(-(-noise // 2), length - noise + 1)


def blanks(length: int, share: float, mean: float, draws: Draws) -> list[tuple[int, int]]:
    """Return spans [start, stop) in order, at least one token apart, that cover `noise_count` of `length` tokens.

    Lengths are Poisson with `mean`; the last one is cut, or drawn out, to the number (GLM, arXiv 2103.10360).
    """
    noise, most = noise_count(length, share), most_blanks(length, share)
    lengths = draws.poisson(mean, most)
    number = min(int(np.searchsorted(np.cumsum(lengths), noise)) + 1, most)
    lengths = lengths[:number]
    lengths[-1] += noise - lengths.sum()
    lengths = lengths[draws.order(number)]  # the one that was cut may lie anywhere
    free = length - noise - (number - 1)
    bars = draws.choose(free + number, number)
    gaps = np.diff(np.concatenate([[-1], bars])) - 1
    gaps[1:] += 1
    stops = np.cumsum(gaps + lengths)
    return [(int(stop - size), int(stop)) for stop, size in zip(stops, lengths, strict=True)]
