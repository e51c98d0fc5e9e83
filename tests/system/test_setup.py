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
    assert why_no_cuda("13.0", None) == (
        "torch has CUDA 13.0, but there is no nvcc; set CUDA_HOME to the toolkit's folder"
    )
    assert f"there is no nvcc in {tmp_path}/bin; set" in str(why_no_cuda("13.0", str(tmp_path)))  # a runtime alone


@pytest.mark.parametrize("include", ["include", "targets/x86_64-linux/include"])
def test_an_nvcc_without_its_toolkit_stops_the_build(script: dict[str, Any], tmp_path: Path, include: str) -> None:
    """It may be a script that calls the nvcc of a toolkit which is somewhere else."""
    why_no_cuda, headers = script["_why_no_cuda"], tmp_path / include
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    headers.mkdir(parents=True)
    with pytest.raises(SystemExit) as stop:
        why_no_cuda("13.0", str(tmp_path))
    told = str(stop.value)
    assert told.startswith(f"nvcc was found at {tmp_path}/bin/nvcc, but no toolkit is in {tmp_path}")
    assert told.endswith("set CUDA_HOME to the toolkit's folder")
    assert "\n" not in told
    assert why_no_cuda(None, str(tmp_path)) is not None  # nobody looks for one
    (headers / "cuda_runtime.h").touch()
    assert why_no_cuda("13.0", str(tmp_path)) is None


def test_toolkits_are_asked_for_gpus_that_they_know(script: dict[str, Any]) -> None:
    built_for = script["_architectures"]
    assert built_for("12.6") == "8.0;9.0+PTX"
    assert built_for("12.8") == built_for("13.0") == "8.0;9.0;10.0+PTX"
