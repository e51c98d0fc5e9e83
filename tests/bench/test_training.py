"""Both sides of the bench compute the same, on every layout, and a difference stops it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.bench.pairs import Plan
from tests.bench.sizes import QUICK, draw_weights
from tests.bench.training import Layout, Mismatch, check_equal, compare, layouts
from tests.ranks import run_ranks

ONCE = Plan(warmup=0, pairs=1, steps=1)


@pytest.mark.parametrize("layout", layouts(QUICK.samples), ids=lambda layout: layout.key)
def test_trimaran_and_torch_agree_and_are_timed(layout: Layout) -> None:
    for pairs in run_ranks(layout.world, compare, layout, QUICK, ONCE):
        assert len(pairs.ratios) == 1
        assert pairs.ratios[0] > 0


class Scripted:
    """A side that returns the same loss and norm at each step."""

    def __init__(self, loss: float, norm: float) -> None:
        self.told = loss, norm

    def step(self, window: Tensor) -> tuple[float, float]:
        return self.told


@pytest.mark.parametrize(
    ("ours", "what"), [((5.001, 1.0), "loss"), ((5.0, 1.001), "gradient norm"), ((float("nan"), 1.0), "loss")]
)
def test_a_difference_refuses_the_ratio(ours: tuple[float, float], what: str) -> None:
    with pytest.raises(Mismatch, match=what):
        check_equal(Scripted(*ours), Scripted(5.0, 1.0), QUICK)


def test_rounding_is_no_difference() -> None:
    check_equal(Scripted(5.00001, 1.00001), Scripted(5.0, 1.0), QUICK)


def test_weights_are_the_same_on_every_rank_and_all_different() -> None:
    first, again = draw_weights(QUICK), draw_weights(QUICK)
    assert all(torch.equal(first[name], again[name]) for name in first)
    norms = torch.stack([weight for weight in first.values() if weight.dim() == 1])
    assert len(norms.unique(dim=0)) == len(norms)
