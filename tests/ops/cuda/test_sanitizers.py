"""The CUDA kernels once more, under UndefinedBehaviorSanitizer and AddressSanitizer; it guards torch's tensors too."""

from __future__ import annotations

import sys

import pytest

from tests.ops.cuda.build import HostBuild, run, sanitizer_flags
from tests.ops.cuda.sanitized import HERE, ROOT, SANITIZERS, SanitizedTests, environment

SAMPLES = HERE / "samples.cu"

SUM_ROWS = """
import sys, torch
from pathlib import Path
from tests.ops.cuda.build import Emulated
x, sums, library = torch.ones(3, 200), torch.empty(3), Emulated(Path(sys.argv[1]))
library("sum_rows", 0, x, sums, 3, 200, 2, 96)
print(sums.tolist(), flush=True)
library("sum_rows", int(sys.argv[2]), x, sums, 3, 200, 2, 96)
"""


def test_reads_past_the_end_are_seen(host_build: HostBuild) -> None:
    library = host_build.link(SAMPLES, flags=sanitizer_flags(SANITIZERS))
    source = SAMPLES.read_text()
    past_end = source[source.index("enum Bug") : source.index("kPastEnd")].count(",")
    command = [sys.executable, "-c", SUM_ROWS, str(library), str(past_end)]
    done = run(command, timeout=120, env=environment(), cwd=ROOT)
    assert done.stdout.split("\n")[0] == "[200.0, 200.0, 200.0]", done.stderr
    assert done.returncode != 0
    line = 1 + source[: source.index("kPastEnd);")].count("\n")
    assert "heap-buffer-overflow" in done.stderr
    assert f"samples.cu:{line}" in done.stderr


@pytest.mark.timeout(900)
def test_all_kernels(sanitized_tests: SanitizedTests) -> None:
    code, said = sanitized_tests.wait(880)
    assert code == 0, said
    libraries = list(sanitized_tests.folder.rglob("*-build.so"))
    assert len(libraries) >= 2
    assert all(b"__asan_init" in library.read_bytes() for library in libraries)
