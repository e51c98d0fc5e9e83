"""Feed-forward non-linearities of csrc/cuda/activation.cu, executed on the host."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.ops.cuda.build import CSRC, Emulated, HostBuild
from tests.ops.cuda.judge import DTYPES, SEEDS, WIDTHS, for_each_dtype, judge, name, room, unaligned, values, wide

ENTRIES = """
#include "cuda_kernels.h"
using namespace trimaran;
""" + for_each_dtype("""
extern "C" int forward_NAME(const TYPE* x, const TYPE* bias, TYPE* y, const int64_t* n) {
  return cuda_activation(CudaActivation<TYPE>{x, bias, y, n[0], n[1], static_cast<Curve>(n[2]), n[3] != 0}, nullptr);
}
extern "C" int backward_NAME(const TYPE* dy, const TYPE* x, const TYPE* bias, TYPE* dx, Wide<TYPE>* dbias_parts,
                             Wide<TYPE>* dbias, const int64_t* n) {
  return cuda_activation_backward(CudaActivationBackward<TYPE>{dy, x, bias, dx, dbias_parts, dbias, n[0], n[1],
                                                               static_cast<Curve>(n[2]), n[3] != 0}, nullptr);
}""")
CURVES: list[Callable[[Tensor], Tensor]] = [  # in the order of enum class Curve
    F.silu, F.gelu, lambda x: F.gelu(x, approximate="tanh"), F.relu, lambda x: F.relu(x).square(),
]  # fmt: skip


def exact_gelu_tanh(x: Tensor) -> Tensor:
    """x sigmoid(2 u), whose gradient keeps the digits that torch's 1 - tanh(u)^2 loses."""
    return x * F.logsigmoid(2 * math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x.square())).exp()


@pytest.fixture(scope="module")
def kernels(host_build: HostBuild) -> Emulated:
    return host_build.library(CSRC / "cuda" / "activation.cu", entries=ENTRIES)


def plain(
    x: Tensor, bias: Tensor | None, dy: Tensor, curve: int, gated: bool, *, exact: bool = False
) -> tuple[Tensor, ...]:
    """Return y, dx and (with a bias) dbias of torch, computed in the dtype of x."""
    function = exact_gelu_tanh if exact and curve == 2 else CURVES[curve]
    leaves = [t.detach().clone().requires_grad_() for t in (x, *([] if bias is None else [bias]))]
    total = leaves[0] if bias is None else leaves[0] + leaves[1]
    if gated:
        gate, up = total.chunk(2, dim=-1)
        y = function(gate) * up
    else:
        y = function(total)
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


@given(
    dtype=DTYPES, rows=st.sampled_from([0, 1, 2, 17]), width=WIDTHS, curve=st.integers(0, len(CURVES) - 1),
    gated=st.booleans(), bias=st.booleans(), aligned=st.booleans(), in_place=st.booleans(),
    scale=st.sampled_from([0.01, 1.0, 20.0]), seed=SEEDS,
)  # fmt: skip
@example(
    dtype=torch.float64,
    rows=17,
    width=31,
    curve=2,
    gated=True,
    bias=True,
    aligned=False,
    in_place=False,
    scale=20.0,
    seed=0,
)  # torch's own slope is 2e-15 off
@settings(max_examples=100, deadline=None)
def test_activations(
    kernels: Emulated, dtype: torch.dtype, rows: int, width: int, curve: int, gated: bool, bias: bool, aligned: bool,
    in_place: bool, scale: float, seed: int,
) -> None:  # fmt: skip
    kernels.seed(seed)
    place = (lambda t: t) if aligned else unaligned
    columns = 2 * width if gated else width
    x = place(values(seed, rows, columns, dtype=dtype, scale=scale))
    b = place(values(seed + 1, columns, dtype=dtype)) if bias else None
    dy = place(values(seed + 2, rows, width, dtype=dtype))
    sizes, b64 = [rows, width, curve, gated], None if b is None else b.double()
    truth = plain(x.double(), b64, dy.double(), curve, gated, exact=True)
    theirs = plain(x, b, dy, curve, gated)
    y = place(room(rows, width, dtype=dtype))
    kernels(f"forward_{name(dtype)}", x, b, y, sizes)
    parts = room(max(1, rows), columns, dtype=wide(dtype)) if bias else None
    dbias = room(columns, dtype=wide(dtype)) if bias else None
    dx = x if in_place else place(room(rows, columns, dtype=dtype))
    kernels(f"backward_{name(dtype)}", dy, x, b, dx, parts, dbias, sizes)
    judge(y, theirs[0], truth[0])
    judge(dx, theirs[1], truth[1], terms=largest(truth[1]))
    if dbias is not None:
        judge(dbias, theirs[2], truth[2], terms=largest(truth[1].abs().sum(0)))


def largest(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


@pytest.mark.parametrize("curve", range(len(CURVES)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_from_zero(kernels: Emulated, curve: int, dtype: torch.dtype) -> None:
    """Values and slopes are finite and right where intermediate results overflow; NaN stays NaN."""
    top = torch.finfo(dtype).max
    x = torch.tensor([[-top, -1e25, -1e4, -40.0, -0.0, 0.0, 40.0, 1e4, 1e15, float("nan")]], dtype=dtype)
    y, dx = torch.empty_like(x), torch.empty_like(x)
    kernels(f"forward_{name(dtype)}", x, None, y, [1, 10, curve, 0])
    kernels(f"backward_{name(dtype)}", torch.ones_like(x), x, None, dx, None, None, [1, 10, curve, 0])
    assert y[0, -1].isnan()
    torch.testing.assert_close(y[0, :6], torch.zeros(6, dtype=dtype), rtol=0, atol=1e-15)
    x, y, dx = x[0, :-1], y[0, :-1], dx[0, :-1]
    is_square = curve == len(CURVES) - 1
    torch.testing.assert_close(y[6:], x[6:].square() if is_square else x[6:])
    middle = 0.5 if curve < 3 else 0.0
    slopes = 2 * x[6:] if is_square else torch.ones(3, dtype=dtype)
    torch.testing.assert_close(dx, torch.tensor([0.0] * 4 + [middle] * 2 + [0.0] * 3, dtype=dtype).index_copy(
        0, torch.arange(6, 9), slopes), rtol=1e-6, atol=1e-12)  # fmt: skip
