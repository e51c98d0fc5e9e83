"""Normals and dropout of csrc/cuda/random.cu, executed on the host: the reference's numbers to the last bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.ops import backend
from engine.ops.dropout import dropout
from engine.ops.philox import fill_normal_, make_key
from tests.ops.cuda.build import CSRC, Emulated, HostBuild

ENTRIES = """
#include "cuda_kernels.h"
using namespace trimaran;
template <typename T> int fill(T* out, uint64_t key, int64_t dims, const int64_t* n, double std, double mean) {
  Box box{static_cast<int>(dims), {}, {}, {}};
  for (int64_t i = 0; i < dims; ++i) {
    box.sizes[i] = n[i];
    box.offsets[i] = n[dims + i];
    box.global_sizes[i] = n[2 * dims + i];
  }
  return cuda_fill_normal(out, key, box, std, mean, nullptr);
}
template <typename T> int drop(const void* x, void* y, uint64_t key, const int64_t* a, const int64_t* n, double scale) {
  return cuda_dropout(static_cast<const T*>(x), static_cast<T*>(y), key, a, n[0], n[1], n[2], n[3],
                      static_cast<uint32_t>(n[4]), scale, nullptr);
}
extern "C" {
#define FILL(NAME, T)                                                                                        \\
  int fill_##NAME(T* out, uint64_t key, int64_t dims, const int64_t* n, double std, double mean) {           \\
    return fill(out, key, dims, n, std, mean);                                                               \\
  }
FILL(float32, float) FILL(float64, double)
#define DROP(NAME, T)                                                                                        \\
  int drop_##NAME(const void* x, void* y, uint64_t k, const int64_t* a, const int64_t* n, double s) {        \\
    return drop<T>(x, y, k, a, n, s);                                                                        \\
  }
DROP(float32, float) DROP(float64, double) DROP(float16, __half) DROP(bfloat16, __nv_bfloat16)
}
"""


@pytest.fixture(scope="module")
def kernels(host_build: HostBuild) -> Emulated:
    return host_build.library(CSRC / "cuda" / "random.cu", entries=ENTRIES)


def name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=4), data=st.data())
@settings(max_examples=30, deadline=None)
def test_normals_of_a_box(kernels: Emulated, shape: list[int], data: st.DataObject) -> None:
    sizes = [data.draw(st.integers(1, n)) for n in shape]
    offsets = [data.draw(st.integers(0, n - m)) for n, m in zip(shape, sizes, strict=True)]
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    key = make_key(data.draw(st.integers(0, 9)), "w")
    drawn = torch.full(sizes, float("nan"), dtype=dtype)
    kernels(f"fill_{name(drawn)}", drawn, key, len(shape), [*sizes, *offsets, *shape], 0.7, 0.1)
    backend.select("reference")
    assert torch.equal(drawn, fill_normal_(torch.empty(sizes, dtype=dtype), key, shape, offsets, 0.7, 0.1))
    backend.select("auto")


@given(
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    rows=st.integers(0, 5), f=st.sampled_from([1, 2, 3, 4, 7, 64, 301]), column=st.integers(0, 5),
    p=st.floats(0.05, 0.9),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_dropout(kernels: Emulated, dtype: torch.dtype, rows: int, f: int, column: int, p: float) -> None:
    x = torch.linspace(1, 2, rows * f).view(rows, f).to(dtype)
    y, addresses, key = torch.full_like(x, float("nan")), torch.arange(rows) * 2**31 + 3, make_key(1, "d")
    sizes = [rows, f, f + column, column, int(p * 2**32)]
    kernels(f"drop_{name(x)}", x, y, key, addresses, sizes, 1 / (1 - p))
    backend.select("reference")
    assert torch.equal(y, dropout(x, p, key, addresses, f + column, column))
    backend.select("auto")
