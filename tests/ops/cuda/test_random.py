"""Normals, uniform numbers and dropout of csrc/cuda/random.cu, executed on the host: the numbers of the
reference to the last bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.ops import backend
from engine.ops.dropout import add_dropout, dropout
from engine.ops.philox import fill_normal_, fill_uniform_, make_key
from tests.ops.cuda.build import CSRC, Emulated, HostBuild
from tests.ops.cuda.judge import DTYPES, SEEDS, for_each_dtype, name, room, values

ENTRIES = """
#include "cuda_kernels.h"
using namespace trimaran;
static Box box_of(int64_t dims, const int64_t* n) {
  Box box{static_cast<int>(dims), {}, {}, {}};
  for (int64_t i = 0; i < dims; ++i) {
    box.sizes[i] = n[i];
    box.offsets[i] = n[dims + i];
    box.global_sizes[i] = n[2 * dims + i];
  }
  return box;
}
#define FILL(KIND, NAME, T)                                                                                         \\
  extern "C" int KIND##_##NAME(T* out, uint64_t key, int64_t dims, const int64_t* n, double first, double second) { \\
    return cuda_fill_##KIND(out, key, box_of(dims, n), first, second, nullptr);                                     \\
  }
FILL(normal, float32, float) FILL(normal, float64, double)
FILL(uniform, float32, float) FILL(uniform, float64, double)
""" + for_each_dtype(r"""
extern "C" int drop_NAME(const TYPE* x, const TYPE* bias, const TYPE* residual, TYPE* y, uint64_t key,
                         const int64_t* addresses, const int64_t* n, double scale) {
  return cuda_dropout(CudaDropout<TYPE>{x, bias, residual, y, key, addresses, n[0], n[1], n[2], n[3],
                                        static_cast<uint32_t>(n[4]), scale}, nullptr);
}""")
FILLS = {"normal": fill_normal_, "uniform": fill_uniform_}


@pytest.fixture(scope="module")
def kernels(host_build: HostBuild) -> Emulated:
    return host_build.library(CSRC / "cuda" / "random.cu", entries=ENTRIES)


@pytest.mark.parametrize("kind", FILLS)
@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=4), data=st.data())
@settings(max_examples=30, deadline=None)
def test_numbers_of_a_box(kernels: Emulated, kind: str, shape: list[int], data: st.DataObject) -> None:
    sizes = [data.draw(st.integers(1, n)) for n in shape]
    offsets = [data.draw(st.integers(0, n - m)) for n, m in zip(shape, sizes, strict=True)]
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    key = make_key(data.draw(st.integers(0, 9)), "w")
    drawn = room(*sizes, dtype=dtype)
    kernels(f"{kind}_{name(dtype)}", drawn, key, len(shape), [*sizes, *offsets, *shape], 0.1, 0.7)
    backend.select("reference")
    assert torch.equal(drawn, FILLS[kind](torch.empty(sizes, dtype=dtype), key, shape, offsets, 0.1, 0.7))
    backend.select("auto")


@given(
    dtype=DTYPES, rows=st.integers(0, 5), f=st.sampled_from([1, 2, 3, 4, 7, 64, 301]), column=st.integers(0, 5),
    p=st.floats(0.05, 0.9), biased=st.booleans(), added=st.booleans(), seed=SEEDS,
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_dropout(
    kernels: Emulated, dtype: torch.dtype, rows: int, f: int, column: int, p: float, biased: bool, added: bool,
    seed: int,
) -> None:  # fmt: skip
    kernels.seed(seed)
    x, residual, bias = (values(seed + i, *shape, dtype=dtype) for i, shape in enumerate([(rows, f), (rows, f), (f,)]))
    y, addresses, key = room(rows, f, dtype=dtype), torch.arange(rows) * 2**31 + 3, make_key(1, "d")
    sizes = [rows, f, f + column, column, int(p * 2**32)]
    given_bias, given_residual = bias if biased else None, residual if added else None
    kernels(f"drop_{name(dtype)}", x, given_bias, given_residual, y, key, addresses, sizes, 1 / (1 - p))
    assert torch.equal(y, plain(x, given_bias, given_residual, p, key, addresses, f + column, column))


def test_dropout_over_its_own_input_and_residual(kernels: Emulated) -> None:
    x, residual, addresses = torch.linspace(1, 2, 60).view(3, 20), torch.linspace(3, 5, 60).view(3, 20), torch.arange(3)
    expected = plain(x, None, residual, 0.5, 7, addresses, 20, 0)
    for memory in (x.clone(), residual.clone()):
        given = [memory if torch.equal(memory, source) else source for source in (x, residual)]
        kernels("drop_float32", given[0], None, given[1], memory, 7, addresses, [3, 20, 20, 0, 2**31], 2.0)
        assert torch.equal(memory, expected)


def plain(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, p: float, key: int, addresses: Tensor, width: int,
    column: int,
) -> Tensor:  # fmt: skip
    """Return what the reference gives."""
    backend.select("reference")
    if residual is not None:
        y = add_dropout(residual, x, p, key, addresses, width, column, bias_f=bias)
    elif bias is not None:  # the reference has bias only with a residual; that of zeros changes no bit but -0's
        y = add_dropout(torch.zeros_like(x), x, p, key, addresses, width, column, bias_f=bias)
    else:
        y = dropout(x, p, key, addresses, width, column)
    backend.select("auto")
    return y
