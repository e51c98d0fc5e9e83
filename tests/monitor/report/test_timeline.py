"""The pipeline's picture is the engine's schedule: its bubble is the known one, its cells are its actions."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import ConfigError
from engine.monitor.report.timeline import draw, plan
from tests.monitor.report.fake_run import config


def planned(ranks: int = 1, **changes: Any) -> Any:
    return plan(config(10, **changes), 0, ranks)


@pytest.mark.parametrize(("schedule", "chunks"), [("gpipe", 1), ("1f1b", 1), ("interleaved", 2)])
def test_equal_stages_have_the_ideal_bubble(schedule: str, chunks: int) -> None:
    """(p-1) / (m v + p-1), as Narayanan et al. give it for v chunks (arXiv 2104.04473, section 2.2)."""
    found = planned(parallel={"pp": 4, "dp": 1, "schedule": schedule, "virtual_stages": chunks}, model={"layers": 16})
    assert found.bubble == pytest.approx(3 / (16 * chunks + 3))


def test_an_output_projection_makes_the_last_stage_the_longest() -> None:
    plain = config(10, parallel={"pp": 2, "dp": 1})
    light, heavy = plan(plain, 64, 1), plan(plain, 100_000, 1)
    assert light.bubble < heavy.bubble
    assert heavy.idle(1) < heavy.idle(0)


def test_replicas_share_the_batch() -> None:
    assert planned(parallel={"pp": 2, "dp": 4}).micros == 4
    assert planned(ranks=16, parallel={"pp": 2, "dp": None}).micros == 2
    assert planned(parallel={"pp": 2, "dp": 1}, train={"global_batch": 24, "micro_batch": 3}).micros == 8


def test_each_action_is_a_cell() -> None:
    picture = draw(planned(parallel={"pp": 4, "dp": 1}, model={"layers": 16}))
    assert picture.count("<title>forward of micro-batch") == picture.count("<title>backward of micro-batch") == 64
    assert "15.8%" in picture
    assert "at most 4 in flight" in picture


def test_schedules_too_large_to_draw_say_so() -> None:
    huge = planned(parallel={"pp": 4, "dp": 1}, train={"global_batch": 1000})
    assert "too many to draw" in draw(huge)
    with pytest.raises(ConfigError, match="too many to draw"):
        planned(parallel={"pp": 4, "dp": 1}, train={"global_batch": 10**9})
