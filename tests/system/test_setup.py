"""What setup.py says of the kernels that it builds."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py defines."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setenv("ENGINE_NO_EXT", "1")
    return runpy.run_path(str(ROOT / "setup.py"))


def test_gpus_are_left_out_for_a_reason(script: dict[str, Any], tmp_path: Path) -> None:
    why_no_cuda = script["_why_no_cuda"]
    assert why_no_cuda(None, None) == "the installed torch has no CUDA"
    assert why_no_cuda(None, "/opt/cuda") == "the installed torch has no CUDA, though there is a toolkit in /opt/cuda"
    assert why_no_cuda("13.0", None) == (
        "torch has CUDA 13.0, but there is no nvcc; set CUDA_HOME to the toolkit's folder"
    )
    assert f"there is no nvcc in {tmp_path}/bin; set" in str(why_no_cuda("13.0", str(tmp_path)))  # a runtime alone
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    assert why_no_cuda("13.0", str(tmp_path)) is None


def test_toolkits_are_asked_for_gpus_that_they_know(script: dict[str, Any]) -> None:
    built_for = script["_architectures"]
    assert built_for("12.6") == "8.0;9.0+PTX"
    assert built_for("12.8") == built_for("13.0") == "8.0;9.0;10.0+PTX"
