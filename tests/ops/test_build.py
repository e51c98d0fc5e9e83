"""How the CPU kernels are built: for any processor, and without changing how the process rounds."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.ops import backend

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = sorted((CSRC / "cpu").glob("*.cpp"))
CROSS = "aarch64-linux-gnu-g++"


@pytest.mark.skipif(shutil.which(CROSS) is None, reason=f"{CROSS} is not installed (Debian: g++-aarch64-linux-gnu)")
def test_kernels_compile_for_aarch64(tmp_path: Path) -> None:
    def compile_one(source: Path) -> str:
        flags = ["-std=c++17", "-O1", "-Wall", "-Werror", "-fopenmp-simd", "-I", str(CSRC / "include")]
        target = tmp_path / f"{source.stem}.o"
        return subprocess.run(
            [CROSS, *flags, "-c", str(source), "-o", str(target)], capture_output=True, text=True, timeout=200
        ).stderr

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(compile_one, SOURCES)) == [""] * len(SOURCES)
    assert all((tmp_path / f"{source.stem}.o").exists() for source in SOURCES)


@pytest.mark.skipif(backend.load_error() is not None, reason=f"engine._C: {backend.load_error()}")
def test_loading_the_extension_keeps_subnormal_numbers() -> None:
    """A library linked with -ffast-math makes the whole process flush them to zero, torch's kernels too."""
    code = "import torch; import engine._C; x = torch.full((64,), 1e-40); print((x * 0.5 > 0).all().item())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=CSRC.parent
    )  # fmt: skip
    assert done.stdout.strip() == "True", done.stderr
