"""Fixtures of the kernel tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.ops import backend


@pytest.fixture(params=["reference", "cpu"])
def each_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test on the references and on the compiled kernels; its value is the backend's name."""
    if request.param == "cpu" and backend.load_error() is not None:
        pytest.skip(f"engine._C is not built: {backend.load_error()}")
    backend.select(request.param)
    yield request.param
    backend.select("auto")
