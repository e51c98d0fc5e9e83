"""SwiGLU and GELU against their definitions in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from engine.ops.activation import gelu, gelu_tanh, swiglu
from tests.ops.witness import SIZES, check, check_bf16, draw

pytestmark = pytest.mark.usefixtures("each_backend")


def plain_swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


@given(rows=st.sampled_from([0, 1, 3, 70]), width=SIZES, scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
@settings(max_examples=25, deadline=None)
def test_swiglu(rows: int, width: int, scale: float) -> None:
    check(swiglu, plain_swiglu, draw(1, rows, 2 * width, scale=scale))


def test_swiglu_gradcheck() -> None:
    assert torch.autograd.gradcheck(swiglu, (draw(1, 2, 3, 10).requires_grad_(),))


def test_swiglu_in_bf16() -> None:
    # the plain reference rounds silu and the product
    check_bf16(swiglu, plain_swiglu, draw(1, 40, 48), ulps=3)


def test_swiglu_passes_nan_on() -> None:
    x = torch.ones(3, 32)
    x[0, 3], x[1, 20] = float("nan"), float("nan")
    assert swiglu(x).isnan().any(dim=1).tolist() == [True, True, False]


def test_gelu() -> None:
    check(gelu, lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)), draw(1, 9, 11))
    check(
        gelu_tanh, lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))), draw(1, 9, 11)
    )
