"""Fixtures of the tests of library backends."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.ops.libraries.standins import forget, install


@pytest.fixture
def libraries() -> Iterator[dict[str, ModuleType]]:
    """The stand-ins, importable, with CPU tensors that pass for CUDA tensors; its value may be edited."""
    with pytest.MonkeyPatch.context() as patch:
        yield install(patch)
    forget()
