"""The end of a job: who is requeued, who is not, and in which words. Real jobs are in tests/slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import requeue
from launch.requeue import End, decide


def end(code: int, step: int) -> End:
    return End(code, (0, step), True, "7", 0.0)


@pytest.mark.parametrize(
    ("code", "state", "before", "again", "words"),
    [
        (0, "RUNNING None", [], False, "is done"),
        (2, "RUNNING None", [], False, "cannot run as it is"),
        (17, "RUNNING None", [], False, "was stopped by the stability ladder"),
        (75, "RUNNING None", [], True, "was asked to stop and has saved at step 8: requeued"),
        (75, "RUNNING None", [end(75, 8)] * 2, True, "requeued"),
        (75, "RUNNING None", [end(75, 8)] * 3, False, "as 3 times before: not requeued; write more cluster.time"),
        (75, "RUNNING None", [end(75, 8), end(75, 8), end(75, 7)], True, "requeued"),
        (75, "COMPLETING TimeLimit", [], True, "has run out of time and has saved"),
        (75, "COMPLETING Preempted", [], True, "is preempted and has saved"),
        (75, "COMPLETING None", [], False, "was cancelled and has saved at step 8"),
        (143, "CANCELLED None", [], False, "was cancelled and ended with code 143"),
        (138, "RUNNING None", [], True, "was asked to stop"),  # before a launcher could hear it
        (76, "RUNNING None", [], True, "ended with code 76 at step 8: requeued, failure 1 of at most 4"),
        (76, "RUNNING None", [end(76, 8)], True, "failure 2 of at most 4"),
        (76, "RUNNING None", [end(76, 8)] * 2, False, "no further than before: not requeued"),
        (1, "RUNNING None", [end(76, 8)], False, "no further than before"),
        (124, "RUNNING None", [end(76, step) for step in range(1, 5)], False, "cluster.max_requeues=4"),
        (124, "RUNNING None", [end(75, step) for step in range(1, 5)], True, "failure 1 of at most 4"),
    ],
)
def test_what_is_made_of_an_end(code: int, state: str, before: list[End], again: bool, words: str) -> None:
    decided, said = decide(code, state, (0, 8), before, 4)
    assert decided == again, said
    assert words in said


def test_ends_of_a_job_are_counted_over_its_requeues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slurm").mkdir()
    for job, code in [("7", 0), ("7", 0), ("7", 1), ("8", 0)]:  # submitted anew, it is another job
        monkeypatch.setenv("SLURM_JOB_ID", job)
        assert requeue.main([f"run={tmp_path}", "code=76", "state=RUNNING None", "most=9"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("trimaran: job 7 ended with code 76 at step 0: requeued, failure 1 of at most 9")
    assert "not requeued; find the cause" in lines[2]
    notes = [json.loads(line) for line in (tmp_path / "slurm" / "requeues.jsonl").read_text().splitlines()]
    assert [(note["job"], note["requeued"]) for note in notes] == [("7", True), ("7", True), ("7", False), ("8", True)]


def test_an_unknown_setting_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert requeue.main(["run=x", "cod=1"]) == 2
    assert capsys.readouterr().err == "trimaran: unknown setting 'cod'; write key=value. Did you mean 'code'?\n"
