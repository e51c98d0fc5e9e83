"""RMSNorm and LayerNorm against their definitions in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.ops.norm import layer_norm, rms_norm
from tests.ops.witness import SIZES, check, check_bf16, draw

pytestmark = pytest.mark.usefixtures("each_backend")


def plain_rms(x: Tensor, w: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w


def plain_layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w + b


@given(rows=st.sampled_from([0, 1, 2, 5, 65, 130]), width=SIZES, scale=st.sampled_from([1e-4, 1.0, 1e4]))
@settings(max_examples=25, deadline=None)
def test_rms_norm(rows: int, width: int, scale: float) -> None:
    x, w = draw(1, rows, width, scale=scale), draw(2, width)
    # the gradient of a row of one element is a difference of equal numbers: nothing but rounding
    check(lambda x, w: rms_norm(x, w, 1e-5), plain_rms, x, w, slack=32 if width == 1 else 4)


def test_rms_norm_of_rows_that_are_not_contiguous() -> None:
    def ours(x: Tensor, w: Tensor) -> Tensor:
        return rms_norm(x.transpose(0, 1), w, 1e-5)

    check(ours, lambda x, w: plain_rms(x.transpose(0, 1), w), draw(1, 5, 3, 24), draw(2, 24))


def test_rms_norm_gradcheck() -> None:
    x, w = draw(1, 2, 3, 5).requires_grad_(), draw(2, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (x, w))


def test_rms_norm_in_bf16_rounds_once() -> None:
    check_bf16(lambda x, w: rms_norm(x, w, 1e-5), plain_rms, draw(1, 40, 48), draw(2, 48))


def test_weight_gradient_does_not_depend_on_the_number_of_threads(each_backend: str) -> None:
    if each_backend == "reference":
        pytest.skip("torch's sum promises nothing")
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        w = draw(2, 64).float().requires_grad_()
        rms_norm(draw(1, 1000, 64).float(), w, 1e-5).square().sum().backward()
        assert w.grad is not None
        results.append(w.grad)
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_nan_and_infinity_are_passed_on() -> None:
    x = torch.ones(3, 40)
    x[0, 7], x[1, 7] = float("nan"), float("inf")
    y = rms_norm(x, torch.ones(40), 1e-5)
    assert y[:2].isnan().any(dim=1).all()
    assert y[2].isfinite().all()


@given(rows=SIZES, width=st.sampled_from([7, 8, 31, 100]))
@settings(max_examples=10, deadline=None)
def test_layer_norm(rows: int, width: int) -> None:
    inputs = draw(1, rows, width), draw(2, width), draw(3, width)
    check(lambda x, w, b: layer_norm(x, w, b, 1e-5), plain_layer, *inputs)


def test_layer_norm_without_a_bias() -> None:
    check(
        lambda x, w: layer_norm(x, w, None, 1e-5), lambda x, w: plain_layer(x, w, torch.zeros_like(w)),
        draw(1, 5, 12), draw(2, 12),
    )  # fmt: skip


def test_wrong_weight_is_refused(each_backend: str) -> None:
    if each_backend == "cpu":
        with pytest.raises(RuntimeError, match="weight has 3 elements, rows 4"):
            rms_norm(torch.ones(2, 4), torch.ones(3), 1e-5)
    else:
        with pytest.raises(RuntimeError, match="must match"):
            rms_norm(torch.ones(2, 4), torch.ones(3), 1e-5)
