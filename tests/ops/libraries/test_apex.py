"""Our calls of apex: right arguments and layouts, so that the library gives the reference's numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.ops.adamw import adamw_, sum_of_squares
from engine.ops.libraries import apex
from tests.ops.witness import draw

pytestmark = pytest.mark.usefixtures("libraries")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6}  # two roundings of the value, of magnitude up to 4


def slice_of(dtype: torch.dtype, seed: int, *shape: int) -> Tensor:
    """Return a tensor with gaps in its memory."""
    return draw(seed, *shape[:-1], shape[-1] + 3).to(dtype)[..., : shape[-1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm(dtype: torch.dtype) -> None:
    x, dy = slice_of(dtype, 1, 3, 5, 7), slice_of(dtype, 3, 3, 5, 7)
    weight = (1 + draw(2, 7) / 4).to(dtype)
    y, rstd = apex.rms_norm(x, weight, 1e-5)
    assert (y.dtype, rstd.dtype, rstd.shape) == (dtype, torch.float32, (3, 5, 1))
    dx, dw = apex.rms_norm_backward(dy, x, weight, rstd)
    leaves = [t.double().requires_grad_() for t in (x, weight)]
    truth = F.rms_norm(leaves[0], (7,), leaves[1], 1e-5)
    for got, expected in zip((y, dx, dw), (truth, *torch.autograd.grad(truth, leaves, dy.double())), strict=True):
        close(got, expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
def test_layer_norm(dtype: torch.dtype, biased: bool) -> None:
    x, dy = slice_of(dtype, 1, 3, 5, 7), slice_of(dtype, 3, 3, 5, 7)
    weight = (1 + draw(2, 7) / 4).to(dtype)
    bias = draw(4, 7).to(dtype) if biased else None
    y, mean, rstd = apex.layer_norm(x, weight, bias, 1e-5)
    assert mean.shape == rstd.shape == (3, 5, 1)
    dx, dw, db = apex.layer_norm_backward(dy, x, weight, bias, mean, rstd)
    leaves = [t.double().requires_grad_() for t in (x, weight, *([] if bias is None else [bias]))]
    truth = F.layer_norm(leaves[0], (7,), *leaves[1:], eps=1e-5)
    expected = (truth, *torch.autograd.grad(truth, leaves, dy.double()))
    for got, wanted in zip((y, dx, dw, db)[: len(expected)], expected, strict=True):
        assert got is not None
        close(got, wanted, dtype)
    assert (db is None) == (bias is None)


def close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected.detach(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weight_gradients_are_added_in_float32(dtype: torch.dtype) -> None:
    dy, x = slice_of(dtype, 5, 1, 6, 3), slice_of(dtype, 6, 1, 6, 4)
    main_grad = draw(7, 3, 4).float()
    expected = main_grad.double() + torch.einsum("bso,bsi->oi", dy.double(), x.double())
    apex.add_weight_grad_(main_grad, dy, x)
    torch.testing.assert_close(main_grad.double(), expected, rtol=1e-6, atol=1e-6)


def test_weight_gradients_in_16_bits() -> None:
    dy, x, main_grad = draw(5, 6, 3).bfloat16(), draw(6, 6, 4).bfloat16(), draw(7, 3, 4).bfloat16()
    expected = main_grad.double() + dy.double().t() @ x.double()
    apex.add_weight_grad_(main_grad, dy, x)
    torch.testing.assert_close(main_grad.double(), expected, rtol=2**-7, atol=2**-7)


def test_weight_gradients_need_a_contiguous_sum() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        apex.add_weight_grad_(draw(7, 4, 3).float().t(), draw(5, 6, 3).float(), draw(6, 6, 4).float())


def steps(update: Callable[..., None], keep: list[float]) -> list[Tensor]:
    param, first, second = draw(8, 20).float(), torch.zeros(20), torch.zeros(20)
    number = torch.zeros(())
    for i, kept in enumerate(keep):
        number += kept
        grad = draw(9 + i, 20).float() if kept else torch.full((20,), float("nan"))
        update(
            param, grad, first, second, lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1,
            step=number, grad_scale=torch.tensor(0.25), keep=torch.tensor(kept),
        )  # fmt: skip
    return [param, first, second]


def test_adamw_follows_the_reference_and_skips_without_a_trace() -> None:
    for mine, plain in zip(steps(apex.adamw_, [1, 1, 0, 1]), steps(adamw_, [1, 1, 0, 1]), strict=True):
        torch.testing.assert_close(mine, plain, rtol=3e-5, atol=1e-7)
    before, after = steps(apex.adamw_, [1]), steps(apex.adamw_, [1, 0])
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_sum_of_squares() -> None:
    flat = draw(10, 1000).float()
    mine = apex.sum_of_squares(flat)
    assert (mine.shape, mine.dtype) == ((), torch.float64)
    torch.testing.assert_close(mine, sum_of_squares(flat), rtol=1e-6, atol=0)
    assert apex.sum_of_squares(torch.tensor([1.0, float("inf")])).isinf()
