"""Fixtures of the CUDA kernels' tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.ops.cuda.build import HostBuild
from tests.ops.cuda.sanitized import SanitizedTests


@pytest.fixture(scope="session")
def host_build(tmp_path_factory: pytest.TempPathFactory) -> HostBuild:
    """Compiles CUDA sources for the host; skips where their headers are missing."""
    return HostBuild(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="session")
def sanitized_tests(host_build: HostBuild, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SanitizedTests]:
    """The same tests under sanitizers, on their way."""
    tests = SanitizedTests(host_build, tmp_path_factory.mktemp("sanitized"))
    yield tests
    tests.stop()


@pytest.fixture(scope="session", autouse=True)
def _long_tests_start_first(request: pytest.FixtureRequest) -> None:
    """Whoever waits for them in the end finds them done: they keep a second core busy in the meantime."""
    if any("sanitized_tests" in getattr(item, "fixturenames", ()) for item in request.session.items):
        with contextlib.suppress(pytest.skip.Exception):  # for those alone who ask for them
            request.getfixturevalue("sanitized_tests")
