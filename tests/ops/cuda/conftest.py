"""Fixtures of the CUDA kernels' tests."""

from __future__ import annotations

import pytest

from tests.ops.cuda.build import HostBuild


@pytest.fixture(scope="session")
def host_build(tmp_path_factory: pytest.TempPathFactory) -> HostBuild:
    """Compiles CUDA sources for the host; skips where their headers are missing."""
    return HostBuild(tmp_path_factory.mktemp("host"))
