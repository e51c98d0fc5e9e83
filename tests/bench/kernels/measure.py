"""All kernels in one process, two threads, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from engine.ops import backend
from tests.bench.kernels import attention, loss, rows
from tests.bench.kernels.case import Case, Limits
from tests.bench.pairs import Plan
from tests.bench.table import Row
from tests.ranks import run_ranks

GROUPS: list[Callable[[], Iterator[Case]]] = [rows.cases, loss.cases, attention.cases]


def kernel_rows(plan: Plan, threads: int = 2) -> list[Row]:
    """Return a row a kernel, and the limits that they are held against."""
    return run_ranks(1, _body, plan, threads, timeout=3600)[0]


def _body(rank: int, world: int, plan: Plan, threads: int) -> list[Row]:
    torch.set_num_threads(threads)
    backend.select("auto")
    torch.manual_seed(0)
    limits = Limits.measure()
    measured = [case.measure(plan, limits) for group in GROUPS for case in group()]
    copy, gemm = limits.bytes_per_s / 1e9, limits.flops_per_s / 1e9
    return [*measured, Row("the limits", f"copy {copy:.1f} GB/s, GEMM {gemm:.0f} GF/s", *[""] * 5)]
