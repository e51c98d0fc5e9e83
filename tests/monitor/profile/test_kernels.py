"""What a GPU's trace is taken for: made-up kernels, since no GPU is at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.monitor.profile.kernels import attribute, read_kernels


def event(cat: str, name: str, start: float, end: float) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": start * 1e6, "dur": (end - start) * 1e6}


def test_what_runs_beside_computing_is_not_exposed() -> None:
    parts = attribute(
        [(0, 4, "compute"), (3, 6, "communication"), (5, 8, "bubble"), (7.5, 9, "data"), (10, 11, "compute")]
    )
    assert parts == {"compute": 5, "communication": 2, "bubble": 2, "optimizer": 0, "data": 1}


@pytest.mark.parametrize("pipelined", [True, False])
def test_kernels_by_name_and_phase(tmp_path: Path, pipelined: bool) -> None:
    trace = [
        event("user_annotation", "data", 0, 1),
        event("kernel", "sm90_gemm", 1, 3),
        event("kernel", "ncclDevKernel_ReduceScatter_Sum_f32", 2, 4),
        event("kernel", "ncclDevKernel_SendRecv", 4, 6),
        event("gpu_user_annotation", "grad_norm", 6, 8),
        event("kernel", "ncclDevKernel_AllReduce_Sum_f64", 6, 8),
        event("gpu_user_annotation", "optimizer", 8, 10),
        event("kernel", "adamw_kernel", 8, 9),
        event("cpu_op", "aten::mm", 0, 10),
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": trace}))
    found = read_kernels(path, pipelined=pipelined)
    waited = {"communication": 1, "bubble": 4} if pipelined else {"communication": 3, "bubble": 2}
    assert found == pytest.approx({"compute": 2, "optimizer": 1, "data": 1, **waited})


def test_a_trace_without_kernels_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": [event("user_annotation", "data", 0, 1)]}))
    assert read_kernels(path, pipelined=False) is None
