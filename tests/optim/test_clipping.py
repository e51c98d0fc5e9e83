"""Clipping that learns: ZClip and AdaGC against their papers' rules on plain numbers, and what they remember."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.config import OptimConfig
from engine.optim.clipping import CLIP_MODES, GlobalClip
from engine.optim.schedules import second_beta
from engine.optim.trial import verdict

YES, NO = torch.tensor(1.0), torch.tensor(0.0)


def make(mode: str, tensors: tuple[str, ...] = (), **settings: Any) -> GlobalClip:
    return CLIP_MODES[mode](OptimConfig(clip_mode=mode, **settings), tensors, torch.device("cpu"))


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def norm_curve() -> list[float]:
    random = np.random.default_rng(3)
    norms = np.exp(0.2 * random.standard_normal(60)) * np.linspace(2, 1, 60)
    norms[[4, 30, 31, 50]] *= [2, 5, 20, 4]
    return [float(norm) for norm in norms]


def zclipped(norms: list[float], warmup: int, clip: float) -> list[float]:
    """Return the factors that the paper's rule gives, from all norms of the warm-up at once."""
    factors = []
    mean = variance = 0.0
    for count, norm in enumerate(norms):
        limit = norm
        if count >= warmup:
            z = (norm - mean) / math.sqrt(variance)
            if z > 2.5:
                limit = mean + 2.5**2 / z * math.sqrt(variance)
            mean = 0.97 * mean + 0.03 * limit
            variance = 0.97 * variance + 0.03 * (limit - mean) ** 2
        elif count == warmup - 1:
            mean, variance = float(np.mean(norms[:warmup])), float(np.var(norms[:warmup]))
        factors.append(min(limit / norm, clip / (norm + 1e-6) if clip else 1.0, 1.0))
    return factors


@pytest.mark.parametrize("clip", [0.0, 1.5])
def test_zclip_clips_what_stands_out(clip: float) -> None:
    clipping, norms, found = make("zclip"), norm_curve(), []
    for norm in norms:
        found.append(clipping.factor(scalar(norm), vector(norm), clip).item())
        clipping.accept(YES)
    assert found == pytest.approx(zclipped(norms, 25, clip), rel=1e-12)
    if not clip:
        clipped = {step for step, factor in enumerate(found) if factor < 1}
        assert {30, 31, 50} <= clipped
        assert 4 not in clipped, "it was still learning"


def test_equal_norms_are_not_clipped_and_a_first_other_one_is() -> None:
    clipping = make("zclip", clip_warmup=3)
    for _ in range(6):
        assert clipping.factor(scalar(2.0), vector(2.0), 0.0).item() == 1.0
        clipping.accept(YES)
    assert clipping.factor(scalar(4.0), vector(4.0), 0.0).item() == 0.5


def test_adagc_learns_the_least_norm_then_follows() -> None:
    clipping = make("adagc", ("a", "b", "c"), clip_warmup=2)
    steps = [
        # norms, largest global norm, factors, what is usual after it
        ((3.0, 4.0, 0.0), 2.5, (0.5, 0.5, 0.5), (1.5, 2.0, 0.0)),
        ((1.0, 6.0, 0.0), 0.0, (1.0, 1.0, 1.0), (1.0, 2.0, 0.0)),
        ((4.2, 1.0, 9.0), 0.0, (0.25, 1.0, 1.0), (0.98 + 0.02 * 1.05, 1.96 + 0.02, 9.0)),
        ((0.0, 0.0, 18.9), 0.0, (1.0, 1.0, 0.5), (1.001, 1.98, 9.0 * 0.98 + 9.45 * 0.02)),
        ((0.3, 0.4, 0.0), 0.25, (0.5, 0.5, 0.5), None),
    ]
    for norms, clip, factors, usual in steps:
        norms_t = vector(*norms)
        found = clipping.factor(norms_t.norm(), norms_t, clip)
        assert found.tolist() == pytest.approx(factors, rel=1e-5)
        clipping.accept(YES)
        if usual is not None:
            assert clipping.state[1:].tolist() == pytest.approx(usual, rel=1e-5)


@pytest.mark.parametrize("mode", CLIP_MODES)
def test_a_step_that_is_not_made_teaches_nothing(mode: str) -> None:
    clipping = make(mode, ("a", "b"))
    for norm, keep in ((3.0, YES), (math.nan, NO), (math.inf, NO), (100.0, NO)):
        clipping.factor(scalar(norm), vector(norm, norm), 1.0)
        before = clipping.state.clone()
        clipping.accept(keep)
        assert torch.equal(before, clipping.state) == (keep is NO or mode == "global")
    assert torch.isfinite(clipping.state).all()


@pytest.mark.parametrize("mode", CLIP_MODES)
def test_it_goes_on_from_what_was_saved(mode: str) -> None:
    clipping, again = make(mode, ("a", "b"), clip_warmup=2), make(mode, ("a", "b"), clip_warmup=2)
    for norm in (3.0, 2.9, 0.1 + 0.2):
        clipping.factor(scalar(norm), vector(norm, norm / 3), 1.0)
        clipping.accept(YES)
    saved = json.loads(json.dumps(clipping.to_plain()))
    again.load(saved)
    assert torch.equal(again.state, clipping.state)
    again.load({**saved, "mode": "another"})
    assert not again.state.any()
    again.load(None)
    assert not again.state.any()


def test_updates_are_damped_by_tensor_and_judged_as_a_whole() -> None:
    sums_tk = torch.tensor([[16.0, 9.0, 100.0], [1.0, 16.0, 300.0]], dtype=torch.float64)
    damping_t, is_small = verdict(sums_tk, vector(4, 4), clip=1.0, most=0.0)
    assert damping_t.tolist() == [0.5, 1.0]
    assert is_small == 1
    change = math.sqrt(9 * 0.25 + 16) / 20
    for most, small in ((change * 1.001, 1), (change * 0.999, 0)):
        assert verdict(sums_tk, vector(4, 4), clip=1.0, most=most)[1] == small
    assert verdict(sums_tk * math.nan, vector(4, 4), clip=0.0, most=1.0)[1] == 0


def test_palms_beta2() -> None:
    config = OptimConfig(beta2_schedule="palm")
    assert [second_beta(step, config) for step in (0, 31, 2**10 - 1)] == pytest.approx([0.0, 15 / 16, 255 / 256])
    assert second_beta(7, OptimConfig(beta2=0.9)) == 0.9
