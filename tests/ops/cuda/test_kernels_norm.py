"""RMSNorm and LayerNorm of csrc/cuda/norm.cu, executed on the host."""

from __future__ import annotations

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
extern "C" int norm_NAME(const TYPE* x, const TYPE* residual, const TYPE* weight, const TYPE* bias, TYPE* total,
                         TYPE* y, Wide<TYPE>* mean, Wide<TYPE>* rstd, const int64_t* n, double eps) {
  return cuda_norm(CudaNorm<TYPE>{x, residual, weight, bias, total, y, mean, rstd, n[0], n[1], eps}, nullptr);
}
extern "C" int backward_NAME(const TYPE* dy, const TYPE* x, const TYPE* weight, const TYPE* dtotal,
                             const Wide<TYPE>* mean, const Wide<TYPE>* rstd, TYPE* dx, Wide<TYPE>* dweight_parts,
                             Wide<TYPE>* dbias_parts, Wide<TYPE>* dweight, Wide<TYPE>* dbias, const int64_t* n) {
  return cuda_norm_backward(CudaNormBackward<TYPE>{dy, x, weight, dtotal, mean, rstd, dx, dweight_parts, dbias_parts,
                                                   dweight, dbias, n[0], n[1]}, nullptr);
}""")
EPS = 1e-5


@pytest.fixture(scope="module")
def kernels(host_build: HostBuild) -> Emulated:
    return host_build.library(CSRC / "cuda" / "norm.cu", entries=ENTRIES)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, centred: bool) -> Tensor:
    if centred:
        return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)
    return F.rms_norm(x, x.shape[-1:], weight, EPS)


def gradients(
    x: Tensor, weight: Tensor, bias: Tensor | None, dy: Tensor, dtotal: Tensor | None, centred: bool, dtype: torch.dtype
) -> list[Tensor]:
    """Return dx, dweight and dbias of torch, computed in `dtype`."""
    leaves = [t.to(dtype).requires_grad_() for t in (x, weight, *([] if bias is None else [bias]))]
    y = plain(leaves[0], leaves[1], leaves[2] if bias is not None else None, centred)
    found = list(torch.autograd.grad(y, leaves, dy.to(dtype)))
    if dtotal is not None:
        found[0] = found[0] + dtotal.to(dtype)
    return found


class Case:
    """One call of the kernels, forward and backward."""

    def __init__(
        self,
        kernels: Emulated,
        dtype: torch.dtype,
        rows: int,
        h: int,
        *,
        centred: bool,
        residual: bool,
        bias: bool,
        seed: int,
        scale: float,
        aligned: bool,
        order: int | None = None,
    ) -> None:
        place = (lambda t: t) if aligned else unaligned
        kernels.seed(seed if order is None else order)
        self.centred = centred
        x = place(values(seed, rows, h, dtype=dtype, scale=scale, shift=scale * (seed % 3)))
        added = place(values(seed + 1, rows, h, dtype=dtype, scale=scale)) if residual else None
        self.weight = place(values(seed + 2, h, dtype=dtype, scale=0.5, shift=1.0))
        self.bias = place(values(seed + 3, h, dtype=dtype)) if bias and centred else None
        self.dy = place(values(seed + 4, rows, h, dtype=dtype))
        self.dtotal = place(values(seed + 5, rows, h, dtype=dtype)) if residual else None
        self.total = x if added is None else place(room(rows, h, dtype=dtype))
        self.y, self.dx = place(room(rows, h, dtype=dtype)), place(room(rows, h, dtype=dtype))
        self.mean = room(rows, dtype=wide(dtype)) if centred else None
        self.rstd = room(rows, dtype=wide(dtype))
        total = None if added is None else self.total
        kernels(f"norm_{name(dtype)}", x, added, self.weight, self.bias, total, self.y, self.mean, self.rstd,
                [rows, h], EPS)  # fmt: skip
        if added is not None:
            assert torch.equal(self.total, x + added)
        parts = room(2, max(1, -(-rows // 4)), h, dtype=wide(dtype))
        self.dweight = room(h, dtype=wide(dtype))
        self.dbias = room(h, dtype=wide(dtype)) if self.bias is not None else None
        kernels(f"backward_{name(dtype)}", self.dy, self.total, self.weight, self.dtotal, self.mean, self.rstd,
                self.dx, parts[0], parts[1] if self.dbias is not None else None, self.dweight, self.dbias,
                [rows, h])  # fmt: skip


@given(
    dtype=DTYPES, rows=st.sampled_from([0, 1, 2, 5, 37]), h=WIDTHS, centred=st.booleans(), residual=st.booleans(),
    bias=st.booleans(), aligned=st.booleans(), seed=SEEDS, scale=st.sampled_from([1e-3, 1.0, 30.0]),
)  # fmt: skip
@example(dtype=torch.bfloat16, rows=3, h=2056, centred=True, residual=True, bias=True, aligned=True, seed=1, scale=1.0)
@settings(max_examples=60, deadline=None)
def test_norms(
    kernels: Emulated, dtype: torch.dtype, rows: int, h: int, centred: bool, residual: bool, bias: bool, aligned: bool,
    seed: int, scale: float,
) -> None:  # fmt: skip
    case = Case(kernels, dtype, rows, h, centred=centred, residual=residual, bias=bias, seed=seed, scale=scale,
                aligned=aligned)  # fmt: skip
    bias64 = None if case.bias is None else case.bias.double()
    truth = plain(case.total.double(), case.weight.double(), bias64, centred)
    judge(case.y, plain(case.total, case.weight, case.bias, centred), truth)
    exact = gradients(case.total, case.weight, case.bias, case.dy, case.dtotal, centred, torch.float64)
    found = gradients(case.total, case.weight, case.bias, case.dy, case.dtotal, centred, dtype)
    dy, rstd = case.dy.double().abs(), case.rstd.double()
    x = case.total.double().abs() if case.mean is None else case.total.double().abs() + case.mean.abs()[:, None]
    normed = x * rstd[:, None]
    terms = [largest(dy * case.weight.abs() * rstd[:, None]), largest((dy * normed).sum(0)), largest(dy.sum(0))]
    for got, theirs, true, size in zip((case.dx, case.dweight, case.dbias), found, exact, terms, strict=False):
        assert got is not None
        judge(got, theirs, true, size)


def largest(x: Tensor) -> float:
    return x.max().item() if x.numel() else 0.0


@pytest.mark.parametrize("centred", [False, True])
def test_bits_do_not_depend_on_the_order_of_threads(kernels: Emulated, centred: bool) -> None:
    def run(order: int) -> list[Tensor]:
        case = Case(kernels, torch.bfloat16, 70, 264, centred=centred, residual=True, bias=True, seed=7, scale=1.0,
                    aligned=True, order=order)  # fmt: skip
        return [t for t in (case.y, case.total, case.rstd, case.dx, case.dweight, case.dbias) if t is not None]

    for one, other in zip(run(1), run(2), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("centred", [False, True])
def test_bad_numbers_stay_in_their_row(kernels: Emulated, centred: bool, bad: float) -> None:
    x, weight = values(1, 3, 40, dtype=torch.float32), torch.ones(40)
    x[1, 7] = bad
    y, mean, rstd = room(3, 40, dtype=torch.float32), room(3, dtype=torch.float32), room(3, dtype=torch.float32)
    kernels("norm_float32", x, None, weight, None, None, y, mean if centred else None, rstd, [3, 40], EPS)
    expected = plain(x, weight, None, centred)
    torch.testing.assert_close(y, expected, equal_nan=True)
    assert y[1].isnan().any()
    assert y[[0, 2]].isfinite().all()
