"""Each sample has a stream of its own, the same however it is asked for, and distributed as it says."""

from __future__ import annotations

import math

import numpy as np

from engine.objectives.draws import Draws
from engine.objectives.noise import blanks


def test_a_stream_is_addressed_by_seed_and_sample_alone() -> None:
    whole = Draws(1, 5).uniform(700)
    np.random.default_rng().random(3)
    parts = Draws(1, 5)
    assert np.array_equal(whole, np.concatenate([parts.uniform(n) for n in (1, 299, 400)]))
    for seed, index in ((1, 6), (2, 5)):
        assert not np.isclose(whole, Draws(seed, index).uniform(700)).any()


def test_the_numbers_are_these_for_good() -> None:
    """A run that is resumed after numpy, or this code, was changed must draw what it drew before."""
    assert Draws(1234, 7).uniform(3).tolist() == [0.9145584421349047, 0.3205748400682269, 0.7076191579498982]
    assert blanks(30, 0.3, 3.0, Draws(1234, 7)) == [(9, 15), (19, 21), (24, 25)]


def test_whole_numbers() -> None:
    draws = Draws(0, 0)
    counts = np.bincount([draws.below(5) for _ in range(5000)], minlength=5)
    assert counts.sum() == 5000
    assert abs(counts - 1000).max() < 5 * math.sqrt(1000)
    picked = np.bincount([draws.pick(np.array([1.0, 0.0, 3.0])) for _ in range(4000)], minlength=3)
    assert picked[1] == 0
    assert abs(picked[0] - 1000) < 5 * math.sqrt(750)
    assert sorted(draws.order(50).tolist()) == list(range(50))
    chosen = np.array([draws.choose(10, 3) for _ in range(2000)])
    assert (np.diff(chosen) > 0).all()
    assert abs(np.bincount(chosen.ravel(), minlength=10) - 600).max() < 5 * math.sqrt(600)
    assert abs(sum(draws.chance(0.3) for _ in range(4000)) - 1200) < 5 * math.sqrt(840)


def test_poisson_without_zero() -> None:
    lengths = Draws(0, 1).poisson(3.0, 20_000)
    none = math.exp(-3.0)
    for length in range(1, 9):
        expected = 20_000 * none * 3.0**length / math.factorial(length) / (1 - none)
        assert abs((lengths == length).sum() - expected) < 5 * math.sqrt(expected)
    assert lengths.min() == 1
