"""What setup.py says of the kernels that it builds."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[2]


@pytest.fixture
def why_no_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | None]:
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setenv("ENGINE_NO_EXT", "1")
    return runpy.run_path(str(ROOT / "setup.py"))["_why_no_cuda"]


def test_gpus_are_left_out_for_a_reason(why_no_cuda: Callable[..., str | None], tmp_path: Path) -> None:
    assert why_no_cuda(None, None) == "the installed torch has no CUDA"
    assert why_no_cuda(None, "/opt/cuda") == "the installed torch has no CUDA, though there is a toolkit in /opt/cuda"
    assert why_no_cuda("13.0", None) == (
        "torch has CUDA 13.0, but there is no nvcc; set CUDA_HOME to the toolkit's folder"
    )
    assert f"there is no nvcc in {tmp_path}/bin; set" in str(why_no_cuda("13.0", str(tmp_path)))  # a runtime alone
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    assert why_no_cuda("13.0", str(tmp_path)) is None
