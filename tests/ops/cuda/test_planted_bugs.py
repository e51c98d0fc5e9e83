"""What csrc/testing/emulation.h must notice: kernels that are right but for one planted bug."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.ops.cuda.build import Emulated, EmulationError, HostBuild

SAMPLES = Path(__file__).parent / "samples.cu"


def names_of(enum: str) -> list[str]:
    found = re.search(rf"enum {enum} : int64_t {{(.+?)}}", SAMPLES.read_text(), re.DOTALL)
    assert found is not None
    return re.findall(r"\w+", found[1])


NUMBER = {name: number for number, name in enumerate(names_of("Bug"))}
SYNCS = names_of("Sync")

# What goes wrong with sum_rows, 3 rows of 200 in one block, on so many threads.
CAUGHT = [
    ("kNoBarrierAfterWrite", 96, r"race: element \d of partial\[32\] .*(written .* and read|read .* and written) by "),
    ("kNoBarrierBeforeReuse", 96, r"race: element \d of partial\[32\] .*(written .* and read|read .* and written) by "),
    ("kAllWrite", 96, r"race: element 31 of partial\[32\] .* is written by .* and written by"),
    ("kHalfAtBarrier", 96, r"divergence: .* are at different barriers"),
    ("kHalfExits", 96, r"divergence: in block \(0, 0, 0\) 48 threads wait at the barrier .*, 48 have exited"),
    ("kTwoBarriers", 33, r"divergence: .* are at different barriers"),
    ("kLaneMissing", 96, r"divergence: .* 93 threads wait for others of their warps"),
    ("kNotInMask", 96, r"divergence: thread \((7|39|71), 0, 0\) is not in its own mask 4294967167"),
    ("kOutside", 96, r"bounds: element 3\d of partial\[32\] .* does not exist, thread \((0|32|64), 0, 0\)"),
    ("kBefore", 96, r"bounds: element -1 of partial\[32\] .* does not exist, thread \(0, 0, 0\)"),
]  # fmt: skip


@pytest.fixture(scope="module")
def samples(host_build: HostBuild) -> Emulated:
    return host_build.library(SAMPLES, flags=["-Wall", "-Wextra", "-Werror"])


@pytest.mark.parametrize(("bug", "threads", "message"), CAUGHT, ids=[bug for bug, *_ in CAUGHT])
@pytest.mark.parametrize("seed", range(5))
def test_bug_is_caught(samples: Emulated, bug: str, threads: int, message: str, seed: int) -> None:
    x, sums = torch.rand(3, 200), torch.empty(3)
    samples.seed(seed)
    with pytest.raises(EmulationError, match=message) as caught:
        samples("sum_rows", NUMBER[bug], x, sums, 3, 200, 1, threads)
    lines = re.findall(r"samples\.cu:(\d+)", str(caught.value))
    source = SAMPLES.read_text().splitlines()
    assert lines, "no place in the source is named"
    assert all(re.search("partial|sync", source[int(line) - 1]) for line in lines)
    assert "sum_rows" in str(caught.value)
    samples("sum_rows", NUMBER["kNone"], x, sums, 3, 200, 1, threads)  # nothing of the failed launch is left
    torch.testing.assert_close(sums, x.sum(1))


@pytest.mark.parametrize("seed", range(5))
def test_warps_need_their_barriers(samples: Emulated, seed: int) -> None:
    samples.seed(seed)
    x, sums = torch.rand(2, 64, dtype=torch.float64), torch.empty(2, dtype=torch.float64)
    with pytest.raises(EmulationError, match=r"race: element \d+ of sums\[1024\] .*"):
        samples("sum_by_halves", NUMBER["kNoWarpBarrier"], x, sums, 2, 64)


def ordered(sync: str, first: int, second: int) -> bool:
    """Whether what touch_twice has between its two threads orders their accesses."""
    if sync == "kBlock":
        return True
    if first >= 32 or second >= 32:
        return False
    chain = {(0, 1), (0, 2), (1, 0), (1, 2), (2, 1)}  # lane 0 goes on before it could hear of lane 2
    return (
        sync == "kWarp"
        or (sync == "kHalves" and (first - second) % 2 == 0)
        or (sync == "kChain" and (first, second) in chain)
    )


@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize(("first", "second"), [(0, 2), (2, 0), (1, 0), (0, 34), (40, 3)])
@pytest.mark.parametrize("writes", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=["RR", "RW", "WR", "WW"])
def test_races_between_two_threads(
    samples: Emulated, sync: str, first: int, second: int, writes: tuple[int, int]
) -> None:
    """A race is seen in each order of the threads, and nothing else is taken for one."""
    arguments = (SYNCS.index(sync), first, writes[0], second, writes[1], torch.empty(64))
    for seed in range(4):
        samples.seed(seed)
        if ordered(sync, first, second) or not any(writes):
            samples("touch_twice", *arguments)
            continue
        with pytest.raises(EmulationError, match="race: element 0 of element") as caught:
            samples("touch_twice", *arguments)
        assert set(re.findall(r"by thread (\d+) at", str(caught.value))) == {str(first), str(second)}


def test_plain_shared_arrays_are_refused(host_build: HostBuild) -> None:
    """nvcc takes them, but nobody would see their races."""
    kernel = '#include "launch.h"\n__global__ void k() {\n  __shared__ float x[4];\n  x[0] = 1;\n}\n'
    with pytest.raises(AssertionError, match="TRIMARAN_SHARED"):
        host_build.library(entries=kernel)
