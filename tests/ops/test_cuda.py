"""CUDA sources without a GPU: nvcc compiles them for data-centre GPUs, and their code, run on the host by a C++
compiler, gives the reference's numbers to the last bit."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.ops import backend
from engine.ops.dropout import dropout
from engine.ops.philox import fill_normal_, make_key

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))


def toolkit() -> Path:
    """Return the CUDA toolkit's folder; nvcc on the PATH may be a script that calls the real one."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on the PATH")
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, timeout=60)
    top = re.search(r"^#\$ TOP=(.+)$", dry.stderr, re.MULTILINE)
    assert top is not None, dry.stderr
    return Path(top[1]).resolve()


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_nvcc_compiles_without_spills(source: Path, tmp_path: Path) -> None:
    toolkit()
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in (80, 90, 100)]
    flags = ["-std=c++17", "-O3", "-fmad=false", "-Xptxas", "-v", "-I", str(CSRC / "include"), *targets]
    done = subprocess.run(
        ["nvcc", *flags, "-c", str(source), "-o", str(tmp_path / "kernels.o")],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(spills) >= 3, "nothing was compiled"
    assert set(spills) == {("0", "0")}


def test_torch_binding_is_valid(tmp_path: Path) -> None:
    """A torch without CUDA has all headers that the binding needs, but one that its build would have written."""
    include = toolkit() / "include"
    torch_include = Path(torch.__file__).parent / "include"
    if not (torch_include / "c10/cuda/impl/cuda_cmake_macros.h").exists():
        stub = tmp_path / "c10/cuda/impl/cuda_cmake_macros.h"
        stub.parent.mkdir(parents=True)
        stub.write_text("#pragma once\n#define C10_CUDA_BUILD_SHARED_LIBS\n")
    flags = ["-std=c++20", "-fsyntax-only", "-Wall", "-Werror"]
    folders = [arg for folder in (tmp_path, torch_include, include) for arg in ("-isystem", str(folder))]
    done = subprocess.run(
        ["g++", *flags, *folders, "-I", str(CSRC / "include"), str(CSRC / "cuda" / "bindings.cpp")],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


ENTRIES = """
#include "cuda_kernels.h"
using namespace trimaran;
template <typename T> int fill(T* out, uint64_t key, int dims, const int64_t* n, double std, double mean) {
  Box box{dims, {}, {}, {}};
  for (int i = 0; i < dims; ++i) {
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
int fill_float32(float* o, uint64_t k, int d, const int64_t* n, double s, double m) { return fill(o, k, d, n, s, m); }
int fill_float64(double* o, uint64_t k, int d, const int64_t* n, double s, double m) { return fill(o, k, d, n, s, m); }
#define DROP(NAME, T)                                                                                        \\
  int drop_##NAME(const void* x, void* y, uint64_t k, const int64_t* a, const int64_t* n, double s) { \\
    return drop<T>(x, y, k, a, n, s);                                                                        \\
  }
DROP(float32, float) DROP(float64, double) DROP(float16, __half) DROP(bfloat16, __nv_bfloat16)
}
"""


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA sources compiled for the host, behind C functions."""
    include = toolkit() / "include"
    if not (include / "cuda_runtime.h").exists():
        pytest.skip(f"no CUDA headers in {include}")
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "entries.cpp").write_text(ENTRIES)
    library = folder / "kernels.so"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-isystem", str(include)]
    sources = [str(path) for path in (*SOURCES, folder / "entries.cpp")]
    subprocess.run(
        ["g++", *flags, "-I", str(CSRC / "include"), "-x", "c++", *sources, "-o", str(library)], check=True, timeout=240
    )
    return ctypes.CDLL(str(library))


def pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def integers(*values: int) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=4), data=st.data())
@settings(max_examples=30, deadline=None)
def test_normals_of_a_box(on_host: ctypes.CDLL, shape: list[int], data: st.DataObject) -> None:
    sizes = [data.draw(st.integers(1, n)) for n in shape]
    offsets = [data.draw(st.integers(0, n - m)) for n, m in zip(shape, sizes, strict=True)]
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    key = make_key(data.draw(st.integers(0, 9)), "w")
    drawn = torch.full(sizes, float("nan"), dtype=dtype)
    fill = getattr(on_host, f"fill_{name(drawn)}")
    error = fill(
        pointer(drawn), ctypes.c_uint64(key), len(shape), integers(*sizes, *offsets, *shape),
        ctypes.c_double(0.7), ctypes.c_double(0.1),
    )  # fmt: skip
    assert error == 0
    backend.select("reference")
    assert torch.equal(drawn, fill_normal_(torch.empty(sizes, dtype=dtype), key, shape, offsets, 0.7, 0.1))
    backend.select("auto")


@given(
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    rows=st.integers(0, 5), f=st.sampled_from([1, 2, 3, 4, 7, 64, 301]), column=st.integers(0, 5),
    p=st.floats(0.05, 0.9),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_dropout(on_host: ctypes.CDLL, dtype: torch.dtype, rows: int, f: int, column: int, p: float) -> None:
    x = torch.linspace(1, 2, rows * f).view(rows, f).to(dtype)
    y, addresses, key = torch.full_like(x, float("nan")), torch.arange(rows) * 2**31 + 3, make_key(1, "d")
    sizes = integers(rows, f, f + column, column, int(p * 2**32))
    error = getattr(on_host, f"drop_{name(x)}")(
        pointer(x), pointer(y), ctypes.c_uint64(key), pointer(addresses), sizes, ctypes.c_double(1 / (1 - p))
    )
    assert error == 0
    backend.select("reference")
    assert torch.equal(y, dropout(x, p, key, addresses, f + column, column))
    backend.select("auto")
