"""AdamW against torch.optim.AdamW; nothing changes when told to keep; sums of squares for clipping."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.ops.adamw import adamw_, sum_of_squares
from tests.ops.witness import draw

pytestmark = pytest.mark.usefixtures("each_backend")


def update(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: int, scale: float, keep: float, beta2: float = 0.95
) -> None:
    scalars = [torch.tensor(x, dtype=p.dtype) for x in (step, scale, keep)]
    adamw_(p, g, m, v, lr=0.01, beta1=0.9, beta2=beta2, eps=1e-8, weight_decay=0.1, step=scalars[0],
           grad_scale=scalars[1], keep=scalars[2])  # fmt: skip


def trained_by_torch(start: Tensor, grads: list[Tensor], beta2: float) -> Tensor:
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.AdamW([weights], lr=0.01, betas=(0.9, beta2), eps=1e-8, weight_decay=0.1, foreach=False)
    for grad in grads:
        weights.grad = grad * 0.5
        optimizer.step()
    return weights.detach()


@given(n=st.sampled_from([0, 1, 5, 17, 1003]), beta2=st.sampled_from([0.95, 0.999]))
@settings(max_examples=10, deadline=None)
def test_follows_torch(n: int, beta2: float) -> None:
    start, grads = draw(1, n), [draw(i + 2, n) for i in range(5)]
    truth = trained_by_torch(start, grads, beta2)
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 5e-7)):
        ours, first, second = start.to(dtype, copy=True), *torch.zeros(2, n, dtype=dtype)
        for number, grad in enumerate(grads):
            update(ours, grad.to(dtype), first, second, number + 1, scale=0.5, keep=1.0, beta2=beta2)
        torch.testing.assert_close(ours.double(), truth, rtol=tolerance, atol=tolerance)


def test_keeps_everything_bitwise_when_told() -> None:
    state = [draw(i, 77).float().abs() for i in range(3)]
    before = [tensor.clone() for tensor in state]
    for grad, scale in ((float("nan"), 1.0), (1.0, float("nan")), (float("inf"), 0.0)):
        update(state[0], torch.full((77,), grad), state[1], state[2], 3, scale=scale, keep=0.0)
        assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounds_the_parameter_in_the_same_pass(dtype: torch.dtype) -> None:
    state = [draw(i, 77).float().abs() for i in range(4)]
    rounded, one = torch.zeros(77, dtype=dtype), torch.ones(())
    settings = {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.1, "step": one}
    adamw_(*state, **settings, grad_scale=one, keep=one, rounded=rounded)  # type: ignore[arg-type]
    assert torch.equal(rounded, state[0].to(dtype))
    rounded.zero_()
    adamw_(*state, **settings, grad_scale=one, keep=torch.zeros(()), rounded=rounded)  # type: ignore[arg-type]
    assert not rounded.any()


def test_part_of_a_flat_buffer() -> None:
    """An update of a slice leaves its neighbours alone and equals the update of the slice by itself."""
    buffers = [draw(i, 50).float().abs() for i in range(4)]
    alone = [buffer[7:31].clone() for buffer in buffers]
    before = [buffer.clone() for buffer in buffers]
    for p, g, m, v in ([buffer[7:31] for buffer in buffers], alone):
        update(p, g, m, v, 2, scale=1.0, keep=1.0)
    for buffer, old, part in zip(buffers, before, alone, strict=True):
        torch.testing.assert_close(buffer[7:31], part, rtol=1e-6, atol=1e-7)
        assert torch.equal(buffer[:7], old[:7])
        assert torch.equal(buffer[31:], old[31:])


@given(
    n=st.sampled_from([0, 1, 5, 16384, 40000]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
@settings(max_examples=10, deadline=None)
def test_sum_of_squares(n: int, dtype: torch.dtype) -> None:
    x = draw(1, n).to(dtype)
    assert sum_of_squares(x).item() == pytest.approx(x.double().square().sum().item(), rel=1e-13)
    assert sum_of_squares(x).dtype == torch.float64


def test_sum_of_squares_neither_overflows_nor_hides() -> None:
    assert sum_of_squares(torch.full((8,), 1e30)).item() == pytest.approx(8e60, rel=1e-6)
    assert sum_of_squares(torch.tensor([1.0, float("nan")])).isnan()
    assert sum_of_squares(torch.tensor([1.0, float("inf")])).isinf()
