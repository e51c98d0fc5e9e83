"""Dropout: which elements go is decided by their address alone, on every backend, to the last bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.ops import backend
from engine.ops.dropout import add_dropout, dropout
from engine.ops.philox import make_key, random_bits
from tests.ops.witness import check, draw

compiled = pytest.mark.skipif(backend.load_error() is not None, reason=f"engine._C: {backend.load_error()}")


@compiled
@given(rows=st.integers(1, 5), width=st.sampled_from([1, 4, 7, 300]), column=st.integers(0, 5), p=st.floats(0.05, 0.9))
@settings(max_examples=25, deadline=None)
def test_dropout_drops_by_address_on_every_backend(rows: int, width: int, column: int, p: float) -> None:
    address = torch.arange(rows) * 11 + 2
    x = torch.linspace(1, 2, rows * width).view(rows, width)
    key = make_key(9, "drop")
    results = []
    for name in ("cpu", "reference"):
        backend.select(name)
        leaf = x.clone().requires_grad_()
        y = dropout(leaf, p, key, address, width + column, column)
        y.sum().backward()
        assert leaf.grad is not None
        results.append((y.detach(), leaf.grad))
    backend.select("auto")
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    kept = random_bits(key, address[:, None] * (width + column) + torch.arange(width) + column) >= int(p * 2**32)
    assert torch.equal(results[0][0] != 0, kept)
    torch.testing.assert_close(results[0][1], kept / (1 - p), rtol=1e-6, atol=0)


def test_dropout_rate_and_independence_of_sites() -> None:
    x, rows = torch.ones(500, 400), torch.arange(500)
    first = dropout(x, 0.3, make_key(0, "a"), rows, 400) == 0
    second = dropout(x, 0.3, make_key(0, "b"), rows, 400) == 0
    assert first.float().mean().item() == pytest.approx(0.3, abs=0.005)
    assert (first & second).float().mean().item() == pytest.approx(0.09, abs=0.005)
    assert dropout(x, 0.0, 1, rows, 400) is x


@compiled
@given(
    rows=st.integers(0, 4), f=st.sampled_from([1, 5, 64, 300]), biased=st.booleans(), p=st.floats(0.0, 0.9),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_sums_are_bitwise_the_reference_in_every_dtype(
    rows: int, f: int, biased: bool, p: float, dtype: torch.dtype
) -> None:
    address, key = torch.arange(rows) * 7 + 1, make_key(2, "add")
    results: list[list[Tensor]] = []
    for name in ("cpu", "reference"):
        backend.select(name)
        x, residual = (draw(seed, rows, f).to(dtype).requires_grad_() for seed in (1, 2))
        bias = draw(3, f).to(dtype).requires_grad_() if biased else None
        y = add_dropout(residual, x, p, key, address, f, bias_f=bias)
        y.backward(draw(4, rows, f).to(dtype))
        results.append([y, *(leaf.grad for leaf in (x, residual, bias) if leaf is not None)])
    backend.select("auto")
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.usefixtures("each_backend")
def test_sum_with_bias_and_residual() -> None:
    rows, key = torch.tensor([3, 9, 4]), make_key(1, "add")
    kept = random_bits(key, rows[:, None] * 20 + torch.arange(20)) >= int(0.4 * 2**32)
    check(
        lambda residual, x, bias: add_dropout(residual, x, 0.4, key, rows, 20, bias_f=bias),
        lambda residual, x, bias: residual + (x + bias) * kept / 0.6,
        draw(1, 3, 20), draw(2, 3, 20), draw(3, 20),
    )  # fmt: skip


def test_wrong_shapes_are_refused() -> None:
    x, rows = torch.ones(2, 4), torch.zeros(2, dtype=torch.int64)
    if not backend.native("dropout", x):
        pytest.skip("checked by the kernel")
    with pytest.raises(RuntimeError, match="biases for rows of 4"):
        add_dropout(x, x, 0.5, 1, rows, 4, bias_f=torch.ones(3))
    with pytest.raises(RuntimeError, match="residual of another shape"):
        add_dropout(torch.ones(2, 5), x, 0.5, 1, rows, 4)
