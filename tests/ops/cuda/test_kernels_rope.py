"""Rotary embedding of csrc/cuda/rope.cu, executed on the host."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.cuda.build import CSRC, Emulated, HostBuild
from tests.ops.cuda.judge import DTYPES, SEEDS, for_each_dtype, judge, name, unaligned, values

ENTRIES = """
#include "cuda_kernels.h"
using namespace trimaran;
""" + for_each_dtype("""
extern "C" int rope_NAME(TYPE* x, const float* cos, const float* sin, const int64_t* n, double direction) {
  return cuda_rope(CudaRope<TYPE>{x, cos, sin, n[0], n[1], n[2], n[3], n[4], n[5], n[6] != 0,
                                  static_cast<float>(direction)}, nullptr);
}""")


@pytest.fixture(scope="module")
def kernels(host_build: HostBuild) -> Emulated:
    return host_build.library(CSRC / "cuda" / "rope.cu", entries=ENTRIES)


def turned(x: Tensor, cos: Tensor, sin: Tensor, heads: int, interleaved: bool, direction: float) -> Tensor:
    """Return x [tokens, all_heads, d] with the first features of its first heads turned, in x's dtype."""
    rows = torch.arange(x.shape[0]) % cos.shape[0]
    c, s = cos[rows, None].to(x.dtype), sin[rows, None].to(x.dtype) * direction
    rotary, out = 2 * cos.shape[1], x.clone()
    part = x[:, :heads, :rotary]
    pairs = part.unflatten(-1, (-1, 2)) if interleaved else part.unflatten(-1, (2, -1)).transpose(-1, -2)
    a, b = pairs.unbind(-1)
    both = torch.stack([a * c - b * s, b * c + a * s], dim=-1)
    out[:, :heads, :rotary] = (both if interleaved else both.transpose(-1, -2)).flatten(-2)
    return out


@given(
    dtype=DTYPES, tokens=st.sampled_from([0, 1, 6, 9]), heads=st.integers(0, 3), others=st.integers(0, 2),
    half=st.sampled_from([1, 3, 8, 16, 33]), rest=st.sampled_from([0, 1, 8, 16]), period=st.sampled_from([1, 3, 9]),
    interleaved=st.booleans(), direction=st.sampled_from([1.0, -1.0]), aligned=st.booleans(), seed=SEEDS,
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_rope(
    kernels: Emulated, dtype: torch.dtype, tokens: int, heads: int, others: int, half: int, rest: int, period: int,
    interleaved: bool, direction: float, aligned: bool, seed: int,
) -> None:  # fmt: skip
    kernels.seed(seed)
    d, all_heads = 2 * half + rest, heads + others
    x = values(seed, tokens, all_heads, d, dtype=dtype)
    angles = values(seed + 1, period, half, dtype=torch.float32, scale=3.0)
    cos, sin = angles.cos(), angles.sin()
    got = x.clone() if aligned else unaligned(x)
    sizes = [tokens, heads, all_heads, d, 2 * half, period, interleaved]
    kernels(f"rope_{name(dtype)}", got, cos, sin, sizes, direction)
    truth = turned(x.double(), cos.double(), sin.double(), heads, interleaved, direction)
    judge(got, turned(x, cos, sin, heads, interleaved, direction), truth)
    assert torch.equal(got[:, heads:], x[:, heads:])
    assert torch.equal(got[..., 2 * half :], x[..., 2 * half :])


def test_turning_back(kernels: Emulated) -> None:
    x = values(0, 4, 2, 16, dtype=torch.float64)
    angles = values(1, 4, 8, dtype=torch.float32)
    got = x.clone()
    for direction in (1.0, -1.0):
        kernels("rope_float64", got, angles.cos(), angles.sin(), [4, 2, 2, 16, 16, 4, 0], direction)
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)  # the tables are float32
