"""Python under AddressSanitizer and UndefinedBehaviorSanitizer, which also guard torch's tensors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.cuda.build import OBJECTS, SANITIZE, HostBuild, headers, run

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SANITIZERS = "address,undefined"


def environment() -> dict[str, str]:
    """Return what lets Python load libraries built with AddressSanitizer, or skip.

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
    return {**os.environ, **changes}


class SanitizedTests:
    """The tests that execute CUDA kernels, under sanitizers, in a process beside this one."""

    def __init__(self, build: HostBuild, folder: Path) -> None:
        headers()
        left_out = [f"--ignore={HERE / name}.py" for name in ("test_compile", "test_planted_bugs", "test_sanitizers")]
        self.folder = folder / "inner"
        options = ["-x", "-p", "no:cacheprovider", "-k", "not ucontext", f"--basetemp={self.folder}"]
        self._said = folder / "said.txt"
        with self._said.open("w") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pytest", str(HERE), *left_out, *options],
                env={**environment(), OBJECTS: str(build.objects)}, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def wait(self, timeout: float) -> tuple[int, str]:
        """Return the exit code and all that was printed."""
        code = self._process.wait(timeout)
        return code, self._said.read_text()

    def stop(self) -> None:
        """End them, and compilers that they have started, if they still run."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
