"""The order of samples is a bijection for every length, differs by name, and costs nothing to begin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.blend import Blend
from engine.data.order import Permutation
from engine.errors import ConfigError


def test_every_small_length_is_permuted() -> None:
    for n in range(1, 600):
        assert sorted(Permutation(n, "x").take(np.arange(n)).tolist()) == list(range(n))


@given(n=st.integers(600, 60_000), seed=st.integers(0, 2**40))
@settings(max_examples=20, deadline=None)
def test_any_length_is_permuted(n: int, seed: int) -> None:
    images = Permutation(n, seed, "order", 0).take(np.arange(n))
    assert (np.bincount(images, minlength=n) == 1).all()


@given(n=st.integers(10**9, 10**15), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_huge_lengths_stay_inside_and_distinct(n: int, seed: int) -> None:
    order = Permutation(n, seed)
    images = order.take(np.arange(n - 1000, n))
    assert ((images >= 0) & (images < n)).all()
    assert len(set(images.tolist())) == 1000
    assert order(n - 1) == images[-1]


def test_orders_look_random_and_differ_by_name() -> None:
    n = 10_000
    first, second = (Permutation(n, 1, "order", epoch).take(np.arange(n)) for epoch in range(2))
    assert abs(np.corrcoef(first, np.arange(n))[0, 1]) < 0.05
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
    assert (first == second).mean() < 0.01
    assert (np.abs(np.diff(first)) == 1).mean() < 0.01


@given(weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None)
def test_blend_keeps_its_shares_at_every_prefix(weights: list[float]) -> None:
    blend = Blend(weights)
    shares = np.asarray(blend.counts) / sum(blend.counts)
    assert np.abs(shares / (np.asarray(weights) / sum(weights)) - 1).max() <= 0.01
    given_so_far = np.zeros(len(weights), dtype=int)
    for index in range(300):
        source, number = blend(index)
        assert number == given_so_far[source], "samples of a source come one after the other"
        given_so_far[source] += 1
        assert np.abs(given_so_far - shares * (index + 1)).max() < 1


def test_many_sources_keep_their_shares_too() -> None:
    counts = [97, 61, 50, 1, 1, 2, *[3] * 30]
    blend = Blend(counts)
    given_so_far, shares = np.zeros(len(counts)), np.asarray(counts) / sum(counts)
    for index in range(sum(counts)):
        given_so_far[blend(index)[0]] += 1
        assert np.abs(given_so_far - shares * (index + 1)).max() < 1


def test_small_and_even_weights_are_kept() -> None:
    assert Blend([1.0, 1.0, 1.0]).counts == [1, 1, 1]
    assert Blend([0.7, 0.3]).counts == [7, 3]
    assert Blend([0.3333, 0.6667]).counts == [3333, 6667]
    assert Blend([1 / 3, 2 / 3]).counts == [1, 2]
    assert Blend([0.1, 0.2, 0.3]).counts == [1, 2, 3]
    assert Blend([5]).counts == Blend([0.7]).counts == [1]
    assert Blend([2_000_000, 1_000_000]).counts == [2, 1], "weights are often numbers of tokens"
    rare = Blend([1.0, 1.3e-4])
    assert rare.counts[1] / sum(rare.counts) == pytest.approx(1.3e-4, rel=0.01)
    with pytest.raises(ConfigError, match=r"leave that source out or give it 0\.0001 or more"):
        Blend([1.0, 1.3e-7])


def test_blend_goes_on_after_its_period() -> None:
    blend = Blend([3, 1])
    period = sum(blend.counts)
    for index in (0, 1, 7):
        source, number = blend(index)
        assert blend(index + 5 * period) == (source, number + 5 * blend.counts[source])


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [-1.0]])
def test_weights_must_be_positive(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"data\.paths weights"):
        Blend(weights)
