"""A few cases of the fault matrix, one layout, in every test run; `make soak` plays them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.cases import Case, cases
from tests.soak.matrix import play

ALL = list(cases(seed=0))
COVERING = [case for case in ALL if case.quick and case.layout == "dp2" and case.row in ("F1", "F12", "F26")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@pytest.mark.parametrize("case", COVERING, ids=[f"{case.row} {case.title}" for case in COVERING])
def test_a_run_gets_through(root: Path, case: Case) -> None:
    assert play(case, root) is None


def test_the_matrix_covers_its_rows_and_follows_the_seed() -> None:
    rows = {case.row for case in ALL}
    assert {f"F{n}" for n in (1, 2, 3, 7, 8, 10, 11, 12, 13, 14, 21, 22, 23, 25, 26, 27)} <= rows
    assert len(ALL) >= 60
    assert [case.title for case in cases(0)] == [case.title for case in ALL]
    assert [case.title for case in cases(1)] != [case.title for case in ALL]
