"""The extension's memory for CPU tensors: aligned, reused, and as torch's own in all else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.ops import backend

pytestmark = pytest.mark.skipif(backend.load_error() is not None, reason=f"engine._C: {backend.load_error()}")

REUSE = """
import torch
{load}
held = [torch.empty(n, dtype=torch.uint8) for n in (3 << 20, 64, 3 << 20, 64, 3 << 20, 64)]
places = {{x.data_ptr() for x in held[::2]}}
del held[0], held[1], held[2]
again = [torch.empty(3 << 20, dtype=torch.uint8) for _ in range(3)]
print(sum(x.data_ptr() in places for x in again))
"""


@pytest.mark.parametrize("size", [1, 3, 63, 64, 65, 1000, 4096, 10**6])
def test_tensors_are_aligned_and_whole(size: int) -> None:
    tensors = [torch.full((size,), n, dtype=torch.uint8) for n in range(5)]
    assert all(x.data_ptr() % 64 == 0 for x in tensors)
    assert all((x == n).all() for n, x in enumerate(tensors))


def test_what_else_storages_do() -> None:
    assert torch.empty(0).data_ptr() == 0
    grown = torch.arange(4).resize_(1000)
    assert grown[:4].tolist() == [0, 1, 2, 3]
    grown.untyped_storage().resize_(0)
    assert grown.untyped_storage().nbytes() == 0
    array = np.arange(5)
    assert torch.from_numpy(array).clone().numpy().tolist() == array.tolist()


def test_too_much_is_a_clear_error() -> None:
    with pytest.raises(RuntimeError, match="not enough memory for a tensor of 1125899906842624 bytes"):
        torch.empty(1 << 50, dtype=torch.uint8)


def test_a_freed_block_serves_the_next_tensor_of_its_size() -> None:
    """glibc's aligned blocks do not (until 2.37 at least), so the heap of a run grew by a quarter."""
    done = subprocess.run(
        [sys.executable, "-c", REUSE.format(load="import engine._C")], capture_output=True, text=True, timeout=120,
        cwd=Path(__file__).parents[2], env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 30)},
    )  # fmt: skip
    assert done.stdout.strip() == "3", done.stderr
