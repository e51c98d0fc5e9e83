"""Reading a run folder: what is missing or damaged is said on the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.monitor.report.read import find_runs, read_run
from engine.stability.actions import ROLLBACK, Action
from engine.stability.ledger import INTENT, NOTE, Ledger
from tests.monitor.records import step_values
from tests.monitor.report.fake_run import config, decide, run_folder, write


def test_a_run_with_rollbacks(tmp_path: Path) -> None:
    run = read_run(run_folder(tmp_path / "run", 200))
    assert run.notices == []
    assert run.steps.steps.tolist() == list(range(1, 201))
    assert [branch.steps[[0, -1]].tolist() for branch in run.abandoned] == [[81, 94], [131, 144]]
    assert [record["step"] for record in run.validations] == list(range(8, 201, 8))
    assert [(event.kind, event.step, event.onset, event.back_to) for event in run.events] == [
        ("start", 66, None, None),
        ("rollback", 94, 90, 80),
        ("rollback", 144, 140, 130),
        ("lower", 171, 161, None),
    ]
    assert [entry.committed for entry in run.ledger] == [True, True, False]


def test_a_validation_of_an_abandoned_branch_is_not_of_the_run(tmp_path: Path) -> None:
    steps = [{"step": step, "timeline": line, **step_values()} for line, step in ((0, 1), (0, 2), (0, 3), (1, 2))]
    steps.insert(3, {"step": 3, "valid_loss": 9.0})
    steps.insert(1, {"step": 1, "valid_loss": 2.0})
    write(tmp_path / "metrics.jsonl", steps)
    assert [record["valid_loss"] for record in read_run(tmp_path).validations] == [2.0]


def test_steps_trained_again_without_a_ledger_are_told(tmp_path: Path) -> None:
    rows = [{"step": step, **step_values()} for step in (*range(1, 9), *range(5, 12))]
    write(tmp_path / "metrics.jsonl", rows)
    [event] = read_run(tmp_path).events
    assert (event.kind, event.step, event.back_to) == ("again", 8, 4)


def test_damage_is_told_and_left_out(tmp_path: Path) -> None:
    run_folder(tmp_path / "run", 100)
    with open(tmp_path / "run" / "metrics.jsonl", "ab") as file:
        file.write(b'[1]\n{"step": "x", "loss": 1}\n{"step": 1e400}\n' + b"[" * 5000 + b'\n{"step": 101, "lo')
    ledger = tmp_path / "run" / "ledger.jsonl"
    lines = ledger.read_bytes().split(b"\n")
    ledger.write_bytes(b"\n".join([*lines[:2], lines[2].replace(b"rollback", b"rollbacc"), *lines[3:]]))
    run = read_run(tmp_path / "run")
    assert run.step == 100
    assert len(run.ledger) == 1
    assert len(run.notices) == 2
    assert "5 lines are damaged" in run.notices[0]
    assert "line 3 is damaged" in run.notices[1]


def test_odd_values_do_not_stop_it(tmp_path: Path) -> None:
    odd = (
        '{"step": 1, "loss": null, "lr": NaN, "grad_norm": 1e999, "big": 1' + "0" * 400 + ', "word": "x", "list": []}\n'
    )
    (tmp_path / "metrics.jsonl").write_text(odd)
    (tmp_path / "starts.jsonl").write_text('{"step": 0, "config": [1]}\n{"step": 0, "time": "x", "environment": 3}\n')
    run = read_run(tmp_path)
    assert (run.step, run.config) == (1, {})
    assert "big" not in run.steps


def test_entries_of_another_version_are_shown_as_they_are(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(NOTE, {"resumed": 3})
    decide(ledger, Action(ROLLBACK, 9, "spike", "bad", 8, 2))
    ledger.append(INTENT, {"action": {"kind": "leap", "step": "nine"}})
    ledger.close()
    run = read_run(tmp_path)
    assert [entry.action is None for entry in run.ledger] == [True, False, True]
    assert run.ledger[0].detail == "resumed: 3"
    assert "leap" in run.ledger[2].detail


def test_the_newest_start_says_the_configuration(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", [{"step": 1, **step_values()}])
    assert "the configuration is unknown" in read_run(tmp_path).notices[0]
    starts = [{"step": step, "config": config(steps)} for step, steps in ((0, 10), (1, 20))]
    write(tmp_path / "starts.jsonl", starts)
    run = read_run(tmp_path)
    assert (run.notices, run.number("train.steps"), run.number("model.name")) == ([], 20, None)


def test_folders_of_runs(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / "sweep" / name).mkdir(parents=True)
        (tmp_path / "sweep" / name / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    (tmp_path / "sweep" / "data").mkdir()
    a, b = tmp_path / "sweep" / "a", tmp_path / "sweep" / "b"
    assert find_runs([tmp_path / "sweep"]) == [a, b]
    assert find_runs([b, tmp_path / "sweep"]) == [b, a]
    with pytest.raises(ConfigError, match=r"is no folder; name a run folder, such as runs/default"):
        find_runs([tmp_path / "none"])
    with pytest.raises(ConfigError, match=r"neither a run folder .* nor a folder of runs"):
        find_runs([tmp_path / "sweep" / "data"])
