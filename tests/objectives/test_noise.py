"""Which tokens are noise: exact counts, every arrangement equally likely, lengths as published."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.objectives.draws import Draws
from engine.objectives.noise import blanks, composition, most_blanks, noise_count, span_count, span_mask

SHARES = st.floats(0.01, 0.95)


def runs(mask: np.ndarray) -> list[tuple[bool, int]]:
    edges = np.flatnonzero(np.diff(mask)) + 1
    return [(bool(part[0]), len(part)) for part in np.split(mask, edges)]


@given(length=st.integers(2, 300), share=SHARES, mean=st.floats(1, 70), index=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_t5_spans_take_turns_with_what_is_kept(length: int, share: float, mean: float, index: int) -> None:
    mask = span_mask(length, share, mean, Draws(0, index))
    spans = runs(mask)
    assert len(mask) == length
    assert mask.sum() == noise_count(length, share) == min(max(round(length * share), 1), length - 1)
    assert len(spans) == 2 * span_count(length, share, mean)
    assert [noisy for noisy, _ in spans] == [False, True] * (len(spans) // 2)


def test_every_composition_is_equally_likely() -> None:
    draws = Draws(0, 0)
    seen = Counter(tuple(composition(5, 3, draws).tolist()) for _ in range(3000))
    assert set(seen) == {(1, 1, 3), (1, 3, 1), (3, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1)}
    assert max(abs(count - 500) for count in seen.values()) < 5 * math.sqrt(500)


def test_t5_spans_have_the_published_mean_and_every_length() -> None:
    lengths = [n for i in range(200) for noisy, n in runs(span_mask(568, 0.15, 3.0, Draws(3, i))) if noisy]
    assert len(lengths) == 200 * 28
    assert sum(lengths) == 200 * 85
    share_of_one = (28 - 1) / (85 - 1)  # of a uniform composition of 85 into 28
    assert abs(np.mean(np.array(lengths) == 1) - share_of_one) < 0.03


@given(length=st.integers(2, 300), share=SHARES, mean=st.floats(1, 20), index=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_blanks_cover_the_noise_and_never_touch(length: int, share: float, mean: float, index: int) -> None:
    spans = blanks(length, share, mean, Draws(0, index))
    assert sum(stop - start for start, stop in spans) == noise_count(length, share)
    assert 1 <= len(spans) <= most_blanks(length, share)
    edges = [0, *(edge for span in spans for edge in span), length]
    assert all(start < stop for start, stop in spans)
    assert all(stop < start for stop, start in zip(edges[2:-1:2], edges[3:-1:2], strict=False))
    assert edges == sorted(edges)


def test_blanks_are_poisson_and_lie_anywhere() -> None:
    lengths, hit = [], np.zeros(200)
    for index in range(400):
        spans = blanks(200, 0.15, 3.0, Draws(1, index))
        lengths += [stop - start for start, stop in spans]
        for start, stop in spans:
            hit[start:stop] += 1
    expected = 3.0 / (1 - math.exp(-3.0))  # zero is not drawn; the last of ten is cut to the number
    assert abs(np.mean(lengths) - expected) < 0.25
    assert np.var(lengths) > 2.0
    ends, middle = hit[:20].mean(), hit[90:110].mean()
    assert abs(hit.mean() - 60) < 1e-9
    assert abs(ends - middle) < 12
