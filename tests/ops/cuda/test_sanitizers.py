"""The CUDA kernels once more, under UndefinedBehaviorSanitizer and AddressSanitizer; it guards torch's tensors too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.cuda.build import SANITIZE, HostBuild, headers, run, sanitizer_flags

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SAMPLES = HERE / "samples.cu"
SANITIZERS = "address,undefined"


def sanitized(*arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that can load libraries built with AddressSanitizer.

    It must come first in the process, and after it, before Python starts, what throws exceptions.
    """
    names = ("libasan.so", "libstdc++.so")
    runtimes = [Path(run(["g++", f"-print-file-name={name}"]).stdout.strip()) for name in names]
    if not all(runtime.is_absolute() for runtime in runtimes):
        pytest.skip("g++ has no AddressSanitizer")
    changes = {
        "LD_PRELOAD": " ".join(str(runtime.resolve()) for runtime in runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        SANITIZE: SANITIZERS,
    }
    return run([sys.executable, *arguments], timeout=timeout, env={**os.environ, **changes}, cwd=ROOT)


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
    done = sanitized("-c", SUM_ROWS, str(library), str(past_end), timeout=120)
    assert done.stdout.split("\n")[0] == "[200.0, 200.0, 200.0]", done.stderr
    assert done.returncode != 0
    line = 1 + source[: source.index("kPastEnd);")].count("\n")
    assert "heap-buffer-overflow" in done.stderr
    assert f"samples.cu:{line}" in done.stderr


@pytest.mark.timeout(900)
def test_all_kernels(tmp_path: Path) -> None:
    headers()
    left_out = [f"--ignore={HERE / name}.py" for name in ("test_compile", "test_planted_bugs", "test_sanitizers")]
    options = ["-x", "-p", "no:cacheprovider", "-k", "not ucontext", f"--basetemp={tmp_path / 'inner'}"]
    done = sanitized("-m", "pytest", str(HERE), *left_out, *options, timeout=880)
    assert done.returncode == 0, done.stdout + done.stderr
    libraries = list((tmp_path / "inner").rglob("*-build.so"))
    assert len(libraries) >= 2
    assert all(b"__asan_init" in library.read_bytes() for library in libraries)
