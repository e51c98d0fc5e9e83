"""The bindings of csrc/cuda/bindings/, executed on CPU tensors: tests/ops/test_gpu.py with emulated kernels."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from engine.ops import backend
from tests.ops.cuda.build import HostBuild, run
from tests.ops.cuda.torch_bindings import emulated
from tests.ops.test_gpu import EMULATED

ROOT = Path(__file__).parents[3]


@pytest.mark.timeout(900)
@pytest.mark.skipif(backend.load_error() is not None, reason=f"engine._C: {backend.load_error()}")
def test_what_a_gpu_is_tested_for(host_build: HostBuild, tmp_path: Path) -> None:
    """In a process of its own, which keeps the emulated kernels for good."""
    library = emulated(host_build, tmp_path)
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "tests/ops/test_gpu.py"]
    done = run(command, timeout=600, env={**os.environ, EMULATED: str(library)}, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert passed is not None
    assert int(passed[1]) > 200, done.stdout
