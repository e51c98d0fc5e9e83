"""RMSNorm and LayerNorm, alone and of a sum, against their definitions in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from tests.ops.witness import SIZES, check, check_bf16, draw

pytestmark = pytest.mark.usefixtures("each_backend")
ROWS = st.sampled_from([0, 1, 2, 5, 65, 130])
SLACK = {"cpu": 4, "reference": 16}  # LayerNorm's reference is torch's own kernel, which is less exact than plain_layer
SCALES = st.sampled_from([1e-4, 1.0, 1e4])


def plain_rms(x: Tensor, w: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w


def plain_layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w + b


def rms(x: Tensor, w: Tensor) -> Tensor:
    return rms_norm(x, w, 1e-5)


def layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return layer_norm(x, w, b, 1e-5)


def add_rms(x: Tensor, residual: Tensor, w: Tensor) -> Tensor:
    """Both results in one tensor, so that both receive gradients."""
    return torch.cat(add_rms_norm(x, residual, w, 1e-5))


def plain_add_rms(x: Tensor, residual: Tensor, w: Tensor) -> Tensor:
    return torch.cat([plain_rms(x + residual, w), x + residual])


def add_layer(x: Tensor, residual: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.cat(add_layer_norm(x, residual, w, b, 1e-5))


def plain_add_layer(x: Tensor, residual: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.cat([plain_layer(x + residual, w, b), x + residual])


@given(rows=ROWS, width=SIZES, scale=SCALES)
@settings(max_examples=25, deadline=None)
def test_rms_norm(rows: int, width: int, scale: float) -> None:
    x, w = draw(1, rows, width, scale=scale), draw(2, width)
    # the gradient of a row of one element is a difference of equal numbers: nothing but rounding
    check(rms, plain_rms, x, w, slack=32 if width == 1 else 4)


@given(rows=ROWS, width=SIZES, scale=SCALES)
@settings(max_examples=25, deadline=None)
def test_add_rms_norm(rows: int, width: int, scale: float) -> None:
    x, residual = draw(1, rows, width, scale=scale), draw(2, rows, width, scale=scale)
    check(add_rms, plain_add_rms, x, residual, draw(3, width), slack=32 if width == 1 else 4)


@given(rows=ROWS, width=st.sampled_from([7, 8, 31, 100]), scale=st.sampled_from([0.1, 1.0, 1e4]))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_layer_norm(each_backend: str, rows: int, width: int, scale: float) -> None:
    inputs = draw(1, rows, width, scale=scale), draw(2, width), draw(3, width)
    check(layer, plain_layer, *inputs, slack=SLACK[each_backend])


@given(rows=ROWS, width=st.sampled_from([7, 8, 31, 100]), scale=st.sampled_from([0.1, 1.0, 1e4]))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_add_layer_norm(each_backend: str, rows: int, width: int, scale: float) -> None:
    x, residual = draw(1, rows, width, scale=scale), draw(2, rows, width, scale=scale)
    check(add_layer, plain_add_layer, x, residual, draw(3, width), draw(4, width), slack=SLACK[each_backend])


def test_layer_norm_far_from_zero(each_backend: str) -> None:
    # torch's own kernel, which is the reference, rounds the mean in larger steps
    slack = 4 if each_backend == "cpu" else 500
    check(layer, plain_layer, draw(1, 9, 64) + 1000, draw(2, 64), draw(3, 64), slack=slack)


def test_layer_norm_without_a_bias() -> None:
    x, residual, w = draw(1, 5, 12), draw(2, 5, 12), draw(3, 12)
    check(lambda x, w: layer_norm(x, w, None, 1e-5), lambda x, w: plain_layer(x, w, torch.zeros_like(w)), x, w)
    check(
        lambda x, r, w: torch.cat(add_layer_norm(x, r, w, None, 1e-5)),
        lambda x, r, w: plain_add_layer(x, r, w, torch.zeros_like(w)), x, residual, w,
    )  # fmt: skip


def test_rows_that_are_not_contiguous() -> None:
    x, residual, w, b = draw(1, 5, 3, 24), draw(2, 5, 3, 24), draw(3, 24), draw(4, 24)
    check(lambda x, w: rms(x.transpose(0, 1), w), lambda x, w: plain_rms(x.transpose(0, 1), w), x, w)
    check(
        lambda x, r, w, b: add_layer(x.transpose(0, 1), r.transpose(0, 1), w, b),
        lambda x, r, w, b: plain_add_layer(x.transpose(0, 1), r.transpose(0, 1), w, b), x, residual, w, b,
    )  # fmt: skip


def test_gradcheck() -> None:
    x, residual, w, b = (draw(seed, *shape).requires_grad_() for seed, shape in enumerate([(2, 3, 5)] * 2 + [(5,)] * 2))
    assert torch.autograd.gradcheck(rms, (x, w))
    assert torch.autograd.gradcheck(layer, (x, w, b))
    assert torch.autograd.gradcheck(add_rms, (x, residual, w))
    assert torch.autograd.gradcheck(add_layer, (x, residual, w, b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_results_are_rounded_once(dtype: torch.dtype) -> None:
    x, w, b = draw(1, 70, 48), draw(3, 48), draw(4, 48)
    check_bf16(rms, plain_rms, x, w, dtype=dtype)
    check_bf16(layer, plain_layer, x, w, b, dtype=dtype)
    zero = torch.zeros_like(x)  # so that the total is exact
    check_bf16(add_rms, plain_add_rms, x, zero, w, dtype=dtype)
    check_bf16(add_layer, plain_add_layer, x, zero, w, b, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_total_is_the_rounded_sum_bit_for_bit_and_what_is_normalised(dtype: torch.dtype) -> None:
    x, residual, w, b = (draw(seed, *shape).to(dtype) for seed, shape in enumerate([(7, 33)] * 2 + [(33,)] * 2))
    y, total = add_rms_norm(x, residual, w, 1e-5)
    assert torch.equal(total, x + residual)
    assert torch.equal(y, rms_norm(total, w, 1e-5))
    y, total = add_layer_norm(x, residual, w, b, 1e-5)
    assert torch.equal(total, x + residual)
    assert torch.equal(y, layer_norm(total, w, b, 1e-5))


def test_both_terms_of_the_sum_receive_the_same_tensor() -> None:
    x, residual = torch.ones(2, 8, requires_grad=True), torch.ones(2, 8, requires_grad=True)
    w = torch.ones(8)
    for y, total in (add_rms_norm(x, residual, w, 1e-5), add_layer_norm(x, residual, w, w, 1e-5)):
        dx, dresidual = torch.autograd.grad(y.square().sum() + total.sum(), (x, residual))
        assert dx.data_ptr() == dresidual.data_ptr()


def test_results_that_nobody_uses_have_no_gradient() -> None:
    x, residual, w = draw(1, 3, 8).requires_grad_(), draw(2, 3, 8).requires_grad_(), draw(3, 8).requires_grad_()
    for add, alone in (
        (lambda: add_rms_norm(x, residual, w, 1e-5), lambda: rms_norm(x + residual, w, 1e-5)),
        (lambda: add_layer_norm(x, residual, w, None, 1e-5), lambda: layer_norm(x + residual, w, None, 1e-5)),
    ):
        weights = draw(4, 3, 8)
        got = torch.autograd.grad((add()[0] * weights).sum(), (x, residual, w))
        torch.testing.assert_close(got, torch.autograd.grad((alone() * weights).sum(), (x, residual, w)))
        dx, dw = torch.autograd.grad((add()[1] * weights).sum(), (x, w), allow_unused=True)
        assert torch.equal(dx, weights)
        assert dw is None


def test_weight_gradients_reach_main_grad_unrounded() -> None:
    w, b = (torch.ones(16, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    for weight in (w, b):
        weight.main_grad, weight.grad_ready = torch.ones(16), lambda: None  # type: ignore[attr-defined]
    x = draw(1, 200, 16).bfloat16()
    layer_norm(x, w, b, 1e-5).sum().backward()
    assert w.grad is None
    normed = plain_layer(x.double(), torch.ones(16).double(), torch.zeros(16).double())
    torch.testing.assert_close(w.main_grad.double(), 1 + normed.sum(0), rtol=1e-5, atol=1e-4)  # type: ignore[attr-defined]
    assert torch.equal(b.main_grad, torch.full((16,), 201.0))  # type: ignore[attr-defined]


@pytest.mark.parametrize("norm", [add_rms, add_layer])
def test_results_do_not_depend_on_the_number_of_threads(norm: Callable[..., Tensor], each_backend: str) -> None:
    if each_backend == "reference":
        pytest.skip("torch's sum promises nothing")
    results, threads = [], torch.get_num_threads()
    inputs = [draw(1, 1000, 64), draw(2, 1000, 64), draw(3, 64), draw(4, 64)][: 4 if norm is add_layer else 3]
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        leaves = [x.float().requires_grad_() for x in inputs]
        out = norm(*leaves)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nan_and_infinity_are_passed_on() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x, w = torch.ones(3, 40, dtype=dtype), torch.ones(40, dtype=dtype)
        x[0, 7], x[1, 7] = float("nan"), float("inf")
        for y in (rms_norm(x, w, 1e-5), layer_norm(x, w, w, 1e-5)):
            assert y[:2].isnan().any(dim=1).all()
            assert y[2].isfinite().all()


def test_wrong_arguments_are_refused(each_backend: str) -> None:
    x = torch.ones(2, 4)
    for norm in (rms_norm, lambda x, w, eps: layer_norm(x, w, None, eps)):
        with pytest.raises(RuntimeError, match="weight has 3 elements, rows 4" if each_backend == "cpu" else "3"):
            norm(x, torch.ones(3), 1e-5)
    if each_backend == "cpu":
        with pytest.raises(RuntimeError, match=r"residual must be contiguous and have shape \[2, 4\]"):
            add_rms_norm(x, torch.ones(1, 4), torch.ones(4), 1e-5)
        with pytest.raises(RuntimeError, match="one dtype, not Float and BFloat16"):
            rms_norm(x, torch.ones(4, dtype=torch.bfloat16), 1e-5)
