"""CUDA kernels executed on the host by csrc/testing/emulation.h: what threads tell each other, and the results of sound
kernels, whatever the order of their threads."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.ops.cuda.build import Emulated, EmulationError, HostBuild

SAMPLES = Path(__file__).parent / "samples.cu"
STRICT = ["-Wall", "-Wextra", "-Werror"]


@pytest.fixture(scope="module", params=[[], ["-DTRIMARAN_UCONTEXT"]], ids=["own-switch", "ucontext"])
def samples(request: pytest.FixtureRequest, host_build: HostBuild) -> Emulated:
    return host_build.library(SAMPLES, flags=[*STRICT, *request.param])


@pytest.mark.parametrize("threads", [1, 32, 33, 96, 160, 1024])
@pytest.mark.parametrize("seed", range(3))
def test_sums_of_rows(samples: Emulated, threads: int, seed: int) -> None:
    x = torch.randn(5, 301)
    sums = torch.full((5,), float("nan"))
    samples.seed(seed)
    samples("sum_rows", 0, x, sums, 5, 301, 2, threads)
    torch.testing.assert_close(sums, x.sum(1), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 31, 33, 96, 255, 1024])
@pytest.mark.parametrize("seed", range(3))
def test_sums_by_halves(samples: Emulated, threads: int, seed: int) -> None:
    x = torch.randn(3, threads, dtype=torch.float64)
    sums = torch.full((3,), float("nan"), dtype=torch.float64)
    samples.seed(seed)
    samples("sum_by_halves", 0, x, sums, 3, threads)
    torch.testing.assert_close(sums, x.sum(1))


def test_atomics_and_the_order_of_threads(samples: Emulated) -> None:
    n = 1000
    x = torch.rand(n, dtype=torch.float64)

    def order(seed: int) -> Tensor:
        counter, order = torch.zeros(1, dtype=torch.int32), torch.full((n,), -1, dtype=torch.int32)
        single, total = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
        samples.seed(seed)
        samples("count", x, n, counter, single, total, order)
        assert counter.item() == n
        torch.testing.assert_close(total[0], x.sum())
        torch.testing.assert_close(single[0], x.sum().float(), rtol=1e-4, atol=0)
        return order

    first, second = order(1), order(2)
    assert torch.equal(first.sort().values, torch.arange(n, dtype=torch.int32))
    assert not torch.equal(first, second)
    assert torch.equal(first, order(1))
    block_of_first = [int(seen[0]) // 256 for seen in map(order, range(12))]
    assert len(set(block_of_first)) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.uint32, torch.int64], ids=str)
def test_shuffles_and_votes(samples: Emulated, dtype: torch.dtype) -> None:
    x = [3 * lane + 1 for lane in range(32)]
    if dtype.itemsize == 8:
        x = [value * 2**33 for value in x]
    said = torch.zeros(12, 32, dtype=dtype)
    samples(f"exchange_{str(dtype).removeprefix('torch.')}", torch.tensor(x, dtype=dtype), said)
    lanes = range(32)
    sources = [
        [5] * 32,
        [(lane + 1) % 32 for lane in lanes],
        [lane // 8 * 8 + 1 for lane in lanes],
        [max(lane - 3, lane if lane < 3 else 0) for lane in lanes],
        [lane - 3 if lane % 8 >= 3 else lane for lane in lanes],
        [lane + 3 if lane < 29 else lane for lane in lanes],
        [lane + 3 if lane % 8 < 5 else lane for lane in lanes],
        [lane ^ 5 for lane in lanes],
        [lane ^ 9 if lane & 8 else lane for lane in lanes],  # a later part of the warp cannot be read
    ]
    assert said[:9].tolist() == [[x[source] for source in row] for row in sources]
    assert said[9].tolist() == [0b0101, 0b1010] * 16
    assert said[10].tolist() == [1, 0] * 16
    assert said[11].tolist() == [1, 0] * 16


@pytest.mark.parametrize("seed", range(20))
def test_lanes_that_have_left(samples: Emulated, seed: int) -> None:
    """Nobody waits for them, and what would come from them is not a number."""
    x, y = torch.rand(32), torch.zeros(32)
    samples.seed(seed)
    samples("leave_early", x, y, 20)
    torch.testing.assert_close(y[:15], x[:15] + x[5:20])
    assert y[15:20].isnan().all()
    assert torch.equal(y[20:], torch.zeros(12))


def test_every_block_finds_shared_memory_unwritten(samples: Emulated) -> None:
    reals, integers = torch.zeros(4), torch.zeros(4, dtype=torch.int32)
    samples("find_unwritten", reals, integers, 4)
    assert reals.isnan().all()
    assert integers.tolist() == [-1] * 4


def test_shared_elements_are_used_like_plain_ones(samples: Emulated) -> None:
    x, y = torch.arange(32.0), torch.zeros(32)
    samples("use_elements", x, y)
    assert torch.equal(y, 6 * x)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1, 1], [3, 2, 4, 5, 3, 2], [1, 3, 2, 1, 64, 16]], ids=str)
def test_grids_of_three_dimensions(samples: Emulated, sizes: list[int]) -> None:
    total = list(itertools.accumulate(sizes, int.__mul__))[-1]
    numbers = torch.full((total,), -1, dtype=torch.int32)
    samples("number", numbers, sizes)
    assert torch.equal(numbers, torch.arange(total, dtype=torch.int32))


@pytest.mark.parametrize(
    "sizes", [[0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1], [1, 1, 1, 32, 33, 1], [1, 65536, 1, 1, 1, 1]], ids=str
)
def test_launches_that_no_gpu_takes(samples: Emulated, sizes: list[int]) -> None:
    with pytest.raises(EmulationError, match="returned error 9"):  # cudaErrorInvalidConfiguration
        samples("number", None, sizes)
