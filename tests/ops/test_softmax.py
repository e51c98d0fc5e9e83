"""Masked softmax against its definition in float64: scale, cap, ranges, relative bias, distance bias."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.ops.key_ranges import KeyRanges
from engine.ops.softmax import masked_softmax
from tests.ops.witness import check, draw

pytestmark = pytest.mark.usefixtures("each_backend")

CPU = torch.device("cpu")


def plain(x: Tensor, mask: Tensor, scale: float, cap: float, slopes: Tensor | None, bias: Tensor | None) -> Tensor:
    logits = x * scale
    if cap:
        logits = cap * torch.tanh(logits / cap)
    if bias is not None:
        logits = logits + bias
    if slopes is not None:
        places = torch.arange(x.shape[-1])
        logits = logits + slopes.to(x.dtype)[:, None, None] * (places[None, :] - places[:, None])
    return logits.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0.0)


@given(
    b=st.integers(1, 2), h=st.integers(1, 3), s=st.sampled_from([1, 2, 7, 16, 33, 600]),
    scale=st.sampled_from([0.125, 1.0, 30.0]), cap=st.sampled_from([0.0, 0.5, 20.0]), sloped=st.booleans(),
    bias_heads=st.sampled_from([None, 1, "all"]), window=st.none() | st.integers(1, 20),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_every_combination(
    b: int, h: int, s: int, scale: float, cap: float, sloped: bool, bias_heads: int | str | None, window: int | None
) -> None:
    keys = KeyRanges.causal(s, CPU, window)
    slopes = torch.linspace(0.1, 1, h) if sloped else None
    scores = draw(1, b, h, s, s)
    slack = 4 * (1 + scale)
    if bias_heads is None:
        check(
            lambda x: masked_softmax(x, keys, scale=scale, cap=cap, slopes_h=slopes),
            lambda x: plain(x, keys.mask_b1ss, scale, cap, slopes, None), scores, slack=slack,
        )  # fmt: skip
        return
    check(
        lambda x, bias: masked_softmax(x, keys, scale=scale, cap=cap, slopes_h=slopes, bias_hss=bias),
        lambda x, bias: plain(x, keys.mask_b1ss, scale, cap, slopes, bias),
        scores, draw(2, h if bias_heads == "all" else 1, s, s), slack=slack * b * h,
    )  # fmt: skip


def test_a_query_that_sees_nothing_and_scores_that_overflow() -> None:
    first, last = torch.tensor([[0, 2, 1]]).int(), torch.tensor([[0, 1, 2]]).int()
    scores = torch.full((1, 1, 3, 3), 3e38)
    probs = masked_softmax(scores, KeyRanges(first, last))
    assert probs[0, 0].tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.5]]


@pytest.mark.parametrize("s", [40, 2500], ids=["short", "longer than a chunk"])
def test_a_bias_may_mask_too(s: int) -> None:
    """With -inf, for more keys in a row than are kept at a time, and for all; NaN is not masked by it."""
    keys = KeyRanges(torch.zeros(1, s).int(), torch.full((1, s), -1).int())
    keys.last_bs[0, :2] = s - 1
    scores, bias = draw(1, 1, 1, s, s), torch.zeros(1, s, s, dtype=torch.float64)
    bias[0, 0, : s - 30] = bias[0, 1] = -torch.inf
    probs = masked_softmax(scores, keys, bias_hss=bias)[0, 0]
    torch.testing.assert_close(probs[0], (scores[0, 0, 0] + bias[0, 0]).softmax(-1), rtol=1e-12, atol=1e-30)
    assert not probs[1:].any()
    bias[0, 1, 7] = torch.nan
    assert masked_softmax(scores, keys, bias_hss=bias)[0, 0, 1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_errs_no_more_than_torch(dtype: torch.dtype) -> None:
    keys = KeyRanges.causal(40, CPU)
    scores, gradient = draw(1, 2, 3, 40, 40).to(dtype), draw(2, 2, 3, 40, 40).to(dtype)

    def run(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = scores.to(dtype).requires_grad_()
        probs = function(x)
        (dx,) = torch.autograd.grad(probs, x, gradient.to(dtype))
        return probs.detach().double(), dx.double()

    def torchs(x: Tensor) -> Tensor:
        return plain(x, keys.mask_b1ss, 0.5, 0.0, None, None)

    truth, theirs = run(torchs, torch.float64), run(torchs, dtype)
    ours = run(lambda x: masked_softmax(x, keys, scale=0.5), dtype)
    for mine, its, exact in zip(ours, theirs, truth, strict=True):
        assert (mine - exact).abs().max() <= 2 * (its - exact).abs().max()


def test_gradcheck_and_empty() -> None:
    keys = KeyRanges.causal(4, CPU)
    inputs = draw(1, 2, 2, 4, 4).requires_grad_(), draw(2, 2, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, bias: masked_softmax(x, keys, scale=0.7, cap=2.0, bias_hss=bias), inputs)
    assert masked_softmax(torch.ones(0, 2, 4, 4), keys).shape == (0, 2, 4, 4)


def test_gradients_given_to_others_stay_as_they_are() -> None:
    scores, other = draw(1, 1, 1, 5, 5).requires_grad_(), draw(2, 1, 1, 5, 5).requires_grad_()
    gradient = torch.ones(1, 1, 5, 5, dtype=torch.float64).tril()
    (masked_softmax(scores, KeyRanges.causal(5, CPU)) + other).backward(gradient)
    assert torch.equal(other.grad, torch.ones(1, 1, 5, 5, dtype=torch.float64).tril())


def test_wrong_shapes_are_refused(each_backend: str) -> None:
    if each_backend == "reference":
        pytest.skip("checked by the kernel")
    with pytest.raises(RuntimeError, match="ranges of keys must be int32"):
        masked_softmax(torch.ones(1, 1, 4, 4), KeyRanges.causal(5, CPU))
    with pytest.raises(RuntimeError, match="the bias is"):
        masked_softmax(torch.ones(1, 1, 4, 4), KeyRanges.causal(4, CPU), bias_hss=torch.ones(1, 4, 5))
