"""The three products of a linear layer in every precision, and accumulation into main gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.ops.linear import accumulate_bias_grad, accumulate_weight_grad, grad_input, matmul
from tests.ops.witness import draw


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_products_and_main_gradients(dtype: torch.dtype) -> None:
    x, w, b, dy = (draw(i, *shape).to(dtype) for i, shape in enumerate([(2, 5, 6), (4, 6), (4,), (2, 5, 4)]))
    loose = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    wide = [t.double() for t in (x, w, b, dy)]

    def near(got: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(got.double(), expected, rtol=loose, atol=loose * 3)

    near(matmul(x, w, b), wide[0] @ wide[1].t() + wide[2])
    near(grad_input(dy, w), wide[3] @ wide[1])
    assert matmul(x, w, b).dtype == grad_input(dy, w).dtype == dtype
    returned = accumulate_weight_grad(w, dy, x), accumulate_bias_grad(b, dy)
    weight_grad, bias_grad = torch.einsum("bso,bsi->oi", wide[3], wide[0]), wide[3].sum((0, 1))
    for got, expected in zip(returned, (weight_grad, bias_grad), strict=True):
        assert got is not None, "without a main gradient it is returned"
        assert got.dtype == dtype
        near(got, expected)

    ready = []
    main = torch.float64 if dtype == torch.float64 else torch.float32
    for weight, shape in ((w, (4, 6)), (b, (4,))):
        weight.main_grad = torch.ones(shape, dtype=main)  # type: ignore[attr-defined]
        weight.grad_ready = lambda: ready.append(1)  # type: ignore[attr-defined]
    assert accumulate_weight_grad(w, dy, x) is None
    assert accumulate_bias_grad(b, dy) is None
    near(w.main_grad, 1 + weight_grad)  # type: ignore[attr-defined]
    near(b.main_grad, 1 + bias_grad)  # type: ignore[attr-defined]
    assert ready == [1, 1]


def test_main_gradients_of_16_bit_weights_keep_what_16_bits_would_lose() -> None:
    """1 + 1/1000 is 1 in bfloat16: small gradients must add up in the main gradient nonetheless."""
    weight = torch.zeros(1, 1, dtype=torch.bfloat16)
    weight.main_grad = torch.ones(1, 1)  # type: ignore[attr-defined]
    weight.grad_ready = lambda: None  # type: ignore[attr-defined]
    small = torch.full((1, 1), 2.0**-10, dtype=torch.bfloat16)
    for _ in range(64):
        accumulate_weight_grad(weight, small, torch.ones(1, 1, dtype=torch.bfloat16))
    assert weight.main_grad.item() == 1 + 64 * 2.0**-10  # type: ignore[attr-defined]


def test_bf16_product_is_rounded_once() -> None:
    x, w = draw(1, 30, 200).bfloat16(), draw(2, 20, 200).bfloat16()
    exact = x.double() @ w.double().t()
    torch.testing.assert_close(matmul(x, w, None).double(), exact, rtol=2**-8, atol=1e-4)
