"""AdamW, sums of squares and Adafactor's means of csrc/cuda/optimizer.cu, executed on the host."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.cuda.build import CSRC, Emulated, HostBuild
from tests.ops.cuda.judge import DTYPES, SEEDS, WIDTHS, for_each_dtype, judge, name, room, unaligned, values, wide

ENTRIES = """
#include "cuda_kernels.h"
using namespace trimaran;
template <typename W, typename Rounded>
static int step(W* param, const W* grad, W* first, W* second, Rounded* rounded, const double* scalars, int64_t count,
                const double* s) {
  return cuda_adamw(CudaAdamW<W, Rounded>{param, grad, first, second, rounded, scalars, scalars + 1, scalars + 2, count,
                                          s[0], s[1], s[2], s[3], s[4]}, nullptr);
}
#define ADAMW(WIDE, W, NAME, ROUNDED)                                                                                \\
  extern "C" int adamw_##WIDE##_##NAME(W* param, const W* grad, W* first, W* second, ROUNDED* rounded,              \\
                                       const double* scalars, int64_t count, const double* settings) {              \\
    return step(param, grad, first, second, rounded, scalars, count, settings);                                      \\
  }
ADAMW(float32, float, float16, __half) ADAMW(float32, float, bfloat16, __nv_bfloat16)
ADAMW(float64, double, float16, __half) ADAMW(float64, double, bfloat16, __nv_bfloat16)
""" + for_each_dtype("""
extern "C" int squares_NAME(const TYPE* x, int64_t count, double* parts, double* sum) {
  return cuda_sum_of_squares(x, count, parts, sum, nullptr);
}
extern "C" int means_NAME(const TYPE* x, Wide<TYPE>* of_rows, Wide<TYPE>* of_columns, Wide<TYPE>* parts, int64_t rows,
                          int64_t columns) {
  return cuda_square_means(CudaSquareMeans<TYPE>{x, of_rows, of_columns, parts, rows, columns}, nullptr);
}""")
LR, BETAS, EPS, DECAY = 0.01, (0.9, 0.999), 1e-8, 0.1
SETTINGS = torch.tensor([LR, *BETAS, EPS, DECAY], dtype=torch.float64)
WIDE = st.sampled_from([torch.float32, torch.float64])
HALF = st.sampled_from([torch.float16, torch.bfloat16])


@pytest.fixture(scope="module")
def kernels(host_build: HostBuild) -> Emulated:
    return host_build.library(CSRC / "cuda" / "optimizer.cu", entries=ENTRIES)


def plain(param: Tensor, grad: Tensor, first: Tensor, second: Tensor, step: int) -> list[Tensor]:
    """Return the parameter and moments after torch's own AdamW, in the dtype of `param`."""
    p = param.clone().requires_grad_()
    optimizer = torch.optim.AdamW([p], LR, BETAS, EPS, DECAY, foreach=False)
    optimizer.state[p] = {"step": torch.tensor(float(step - 1)), "exp_avg": first.clone(), "exp_avg_sq": second.clone()}
    p.grad = grad.clone()
    optimizer.step()
    return [p.detach(), optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]]


def rounded_once(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in 16 bits. torch rounds float64 twice, by way of float32; rounding to odd there loses nothing."""
    if x.dtype == torch.float32:
        return x.to(dtype)
    bits = x.float().view(torch.int32)
    towards_zero = bits - (x.float().double().abs() > x.abs()).int()
    odd = torch.where(x.float().double() == x, bits, towards_zero | 1)
    return odd.view(torch.float32).to(dtype)


@given(
    dtype=WIDE, rounded=HALF, out=st.booleans(), count=st.sampled_from([0, 1, 3, 4, 7, 255, 256, 1031]),
    step=st.sampled_from([1, 2, 1000]), grad_scale=st.sampled_from([1.0, 0.25]), aligned=st.booleans(), seed=SEEDS,
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_adamw(
    kernels: Emulated, dtype: torch.dtype, rounded: torch.dtype, out: bool, count: int, step: int, grad_scale: float,
    aligned: bool, seed: int,
) -> None:  # fmt: skip
    kernels.seed(seed)
    place = (lambda t: t) if aligned else unaligned
    tensors = [place(values(seed + i, count, dtype=dtype)) for i in range(4)]
    tensors[3].abs_()
    before = [t.clone() for t in tensors]
    low = room(count, dtype=rounded) if out else None
    scalars = torch.tensor([step, grad_scale, 1.0], dtype=torch.float64)
    kernels(f"adamw_{name(dtype)}_{name(rounded)}", *tensors, low, scalars, count, SETTINGS)
    param, grad, first, second = (t.double() for t in before)
    truth = plain(param, grad * grad_scale, first, second, step)
    param, grad, first, second = before
    theirs = plain(param, grad * grad_scale, first, second, step)
    assert torch.equal(tensors[1], before[1])
    rate = LR / (1 - BETAS[0] ** step)
    terms = (2 + 10 * rate, 2.0, 2.0)
    for got, their, true, size in zip((tensors[0], *tensors[2:]), theirs, truth, terms, strict=True):
        judge(got, their, true, terms=size)
    if low is not None:
        assert torch.equal(low, rounded_once(tensors[0], rounded))


@pytest.mark.parametrize("bad", [1.0, math.nan, math.inf])
def test_a_step_that_is_not_kept_changes_no_bit(kernels: Emulated, bad: float) -> None:
    tensors = [values(i, 300, dtype=torch.float32) for i in range(4)]
    tensors[1][7] = bad
    before, low = [t.clone() for t in tensors], values(9, 300, dtype=torch.bfloat16)
    low_before, scalars = low.clone(), torch.tensor([1.0, bad, 0.0], dtype=torch.float64)
    kernels("adamw_float32_bfloat16", *tensors, low, scalars, 300, SETTINGS)
    for now, then in zip((*tensors, low), (*before, low_before), strict=True):
        assert torch.equal(now.view(torch.uint8), then.view(torch.uint8))


@given(
    dtype=DTYPES, count=st.sampled_from([0, 1, 5, 16383, 16384, 16385, 40001]), aligned=st.booleans(),
    scale=st.sampled_from([1e-6, 1.0, 1e4]), seed=SEEDS,
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_sum_of_squares(
    kernels: Emulated, dtype: torch.dtype, count: int, aligned: bool, scale: float, seed: int
) -> None:
    x = values(seed, count, dtype=dtype, scale=scale)
    x = x if aligned else unaligned(x)
    sums = []
    for order in (seed, seed + 1):
        kernels.seed(order)
        total = room(1, dtype=torch.float64)
        kernels(f"squares_{name(dtype)}", x, count, room(8, dtype=torch.float64), total)
        sums.append(total.item())
    assert sums[0] == sums[1]
    assert sums[0] == pytest.approx(math.fsum((x.double().square()).tolist()), rel=1e-13)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_sum_of_squares_shows_what_is_not_finite(kernels: Emulated, bad: float) -> None:
    x, total = torch.ones(20000), torch.zeros(1, dtype=torch.float64)
    x[17000] = bad
    kernels("squares_float32", x, 20000, room(2, dtype=torch.float64), total)
    assert not total.isfinite()


@given(
    dtype=DTYPES, rows=st.sampled_from([1, 2, 15, 16, 17, 50]), columns=WIDTHS, aligned=st.booleans(),
    scale=st.sampled_from([1e-2, 1.0, 100.0]), seed=SEEDS,
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_square_means(
    kernels: Emulated, dtype: torch.dtype, rows: int, columns: int, aligned: bool, scale: float, seed: int
) -> None:
    kernels.seed(seed)
    x = values(seed, rows, columns, dtype=dtype, scale=scale)
    x = x if aligned else unaligned(x)
    of_rows, of_columns = room(rows, dtype=wide(dtype)), room(columns, dtype=wide(dtype))
    kernels(f"means_{name(dtype)}", x, of_rows, of_columns, room(4, columns, dtype=wide(dtype)), rows, columns)
    squares, plain_squares = x.double().square(), x.to(wide(dtype)).square()
    judge(of_rows, plain_squares.mean(1), squares.mean(1))
    judge(of_columns, plain_squares.mean(0), squares.mean(0))
