"""The pipeline's picture is the engine's schedule: its bubble is the known one, its cells are its actions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ConfigError
from engine.monitor.report.pipeline import measured
from engine.monitor.report.pipeline import planned as plan
from engine.monitor.report.timeline import draw
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
    assert "at most 4 in flight" in picture


def write_stage(folder: Path, stage: int, step: int, actions: list[list[Any]]) -> None:
    (folder / "pipeline").mkdir(exist_ok=True)
    record = {"step": step, "stage": stage, "stages": 2, "actions": actions}
    (folder / "pipeline" / f"stage_{stage:04d}.json").write_text(json.dumps(record))


def test_a_measured_step(tmp_path: Path) -> None:
    assert measured(tmp_path) is None
    write_stage(tmp_path, 0, 11, [["F", 0, 0, 2.0, 3.0], ["B", 0, 0, 6.0, 8.0]])
    assert measured(tmp_path) is None  # stage 1 has not written yet
    write_stage(tmp_path, 1, 11, [["F", 0, 0, 3.0, 4.0], ["B", 0, 0, 4.0, 6.0]])
    timed = measured(tmp_path)
    assert timed is not None
    step, timeline = timed
    assert (step, timeline.stages, timeline.micros, timeline.makespan) == (11, 2, 1, 6.0)
    assert timeline.bubble == pytest.approx(0.5)
    assert "<title>backward of micro-batch 0: 4 s to 6 s</title>" in draw(timeline)
    write_stage(tmp_path, 1, 111, [["F", 0, 0, 3.0, 4.0], ["B", 0, 0, 4.0, 6.0]])
    assert measured(tmp_path) is None  # of two steps
    write_stage(tmp_path, 1, 11, [["F", 0, 0, 3.0, 4.0], ["F", 0, 0, 4.0, 6.0]])
    with pytest.raises(ValueError, match="more than once"):
        measured(tmp_path)


def test_schedules_too_large_to_draw_say_so() -> None:
    huge = planned(parallel={"pp": 4, "dp": 1}, train={"global_batch": 1000})
    assert "too many to draw" in draw(huge)
    with pytest.raises(ConfigError, match="too many to draw"):
        planned(parallel={"pp": 4, "dp": 1}, train={"global_batch": 10**9})
