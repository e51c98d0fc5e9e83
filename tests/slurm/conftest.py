"""One private SLURM for all tests of a pytest process; skipped where none can be started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.slurm.daemons import Slurm, running, why_not


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Two nodes, n1 and n2, idle."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(running(tmp_path_factory.mktemp("slurm")))
        except TimeoutError as error:
            pytest.skip(str(error))
        yield started
