"""Sweeps with Hydra's own launcher: a run for each point, named and grouped; failures stay with their point."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.config import Config
from engine.errors import ConfigError
from engine.monitor import attempts
from launch.codes import Outcome
from launch.settings import run_with_config
from launch.sweep import main
from launch.sweeps.points import FILE, point_name, read_points

LR = "optim.lr=0.1,0.2,0.3"


class Runs:
    """Stands for what starts ranks: keeps what it was asked, and leaves what a run does."""

    def __init__(self, end: Callable[[Config], Outcome] = lambda config: Outcome(0)) -> None:
        self.end, self.seen = end, list[tuple[Config, list[str]]]()

    def __call__(self, config: Config, overrides: list[str]) -> Outcome:
        self.seen.append((config, overrides))
        folder = Path(config.run.root) / config.run.name
        rows = [
            {"step": 1, "loss": config.optim.lr, "tokens_per_s": 1234.0},
            {"step": 1, "valid_loss": config.optim.lr},
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return self.end(config)

    @property
    def rates(self) -> list[float]:
        return [config.optim.lr for config, _ in self.seen]


def sweep(tmp_path: Path, runs: Runs, *argv: str, check: Callable[[Config, bool], object] = lambda c, h: None) -> int:
    return run_with_config(runs, [f"run.root={tmp_path}", "-m", *argv], check)


def test_each_point_is_a_run_of_its_own_in_one_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Runs()
    argv = ["run.name=both", "optim.lr=0.1,0.2", "model=gpt-tiny,llama-tiny", "train.steps=7"]
    assert sweep(tmp_path, runs, *argv) == 0
    names = [config.run.name for config, _ in runs.seen]
    assert names[0] == "sweeps/both/optim.lr=0.1,model=gpt-tiny"
    assert len(set(names)) == 4
    assert {config.monitor.wandb_group for config, _ in runs.seen} == {"both"}
    seen: list[Config] = []

    def keep(config: Config, overrides: list[str]) -> Outcome:
        seen.append(config)
        return Outcome(0)

    for config, overrides in runs.seen:  # a rank that reads the overrides of its point gets the same configuration
        assert run_with_config(keep, overrides) == 0
        assert seen[-1] == config
    again = Runs()
    assert sweep(tmp_path, again, *argv) == 0
    assert [config.run.name for config, _ in again.seen] == names  # so that a sweep started again resumes
    assert (tmp_path / "sweeps" / "both" / "multirun.yaml").exists()
    assert capsys.readouterr().out.count("│ done ") == 8


def test_a_failed_point_stops_no_other_and_the_table_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(config: Config) -> Outcome:
        if config.optim.lr == 0.1:
            attempts.note(Path(config.run.root) / config.run.name, attempts.EXPLAINED, code=76, why="rank 1 died.")
            return Outcome(76)
        if config.optim.lr == 0.2:
            raise ConfigError("no such corpus.")
        return Outcome(0)

    runs = Runs(end)
    assert sweep(tmp_path, runs, LR) == 76
    assert runs.rates == [0.1, 0.2, 0.3]
    capsys.readouterr()
    assert main([str(tmp_path / "sweeps" / "default")]) == 0
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if "│" in line
    ]
    assert rows == [
        ["0.1", "1", "0.1000", "0.1000", "1,234", "failed", "rank 1 died. (exit code 76)"],
        ["0.2", "1", "0.2000", "0.2000", "1,234", "failed", "no such corpus. (exit code 2)"],
        ["0.3", "1", "0.3000", "0.3000", "1,234", "done", ""],
    ]


def test_a_bug_of_a_point_stays_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def end(config: Config) -> Outcome:
        if config.optim.lr == 0.1:
            raise RuntimeError("a bug")
        return Outcome(0)

    runs = Runs(end)
    assert sweep(tmp_path, runs, LR) == 1
    assert len(runs.seen) == 3
    assert "RuntimeError: a bug (exit code 1)" in capsys.readouterr().out


def test_who_stops_a_point_stops_the_sweep(tmp_path: Path) -> None:
    runs = Runs(lambda config: Outcome(75, stopped=True))
    assert sweep(tmp_path, runs, LR) == 75
    states = {point.name: point.state for point in read_points(tmp_path / "sweeps" / "default")}
    assert states == {"optim.lr=0.1": "ended", "optim.lr=0.2": "waiting", "optim.lr=0.3": "waiting"}


def test_wrong_points_stop_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def check(config: Config, here: bool) -> None:
        assert here
        if config.parallel.tp == 3:
            raise ConfigError("tp=3 does not divide model.heads=4.")

    runs = Runs()
    assert sweep(tmp_path, runs, "optim.lr=1,2", "parallel.tp=1,3", check=check) == 2
    assert capsys.readouterr().err == (
        "trimaran: point 2 (optim.lr=1 parallel.tp=3): tp=3 does not divide model.heads=4. 1 more of 4 points are "
        "wrong. Nothing was started.\n"
    )
    assert sweep(tmp_path, runs, "optim.lr=1,fast") == 2
    assert "point 2 (optim.lr=fast): optim.lr=fast: Value 'fast'" in capsys.readouterr().err
    assert runs.seen == []
    assert not (tmp_path / "sweeps").exists()


@pytest.mark.parametrize(
    ("argv", "answer"),
    [
        (["optim.lr=1"], "-m sweeps over nothing; write several values, as in optim.lr=1e-3,3e-4"),
        (["run.name=a,b"], "run.name names the whole sweep"),
        (["optim.lrr=1,2"], "unknown key optim.lrr. Did you mean 'optim.lr'?"),
    ],
)
def test_mistakes_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], answer: str) -> None:
    assert sweep(tmp_path, Runs(), *argv) == 2
    assert answer in capsys.readouterr().err


def test_where_ranks_are_given_there_is_no_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with_config(Runs(), ["-m", LR]) == 2
    assert "start it with python, without torchrun" in capsys.readouterr().err


def test_names_of_points() -> None:
    assert point_name(["optim.lr=0.1", "model=gpt"]) == "optim.lr=0.1,model=gpt"
    odd = [point_name([f"data.paths=[{name}]"]) for name in ("a b", "a/b", "x" * 300)]
    assert len(set(odd)) == 3
    assert all("/" not in name and len(name) < 140 for name in odd)


def test_a_point_without_a_sign_of_life_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, Runs(), "optim.lr=0.1,0.2")
    path = tmp_path / "sweeps" / "default" / "optim.lr=0.1" / FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "running", "time": 0}))
    metrics = path.parent / "metrics.jsonl"
    os.utime(metrics, (0, 0))
    capsys.readouterr()
    assert main([str(tmp_path / "sweeps" / "default")]) == 0
    assert "no sign of life since it was started on" in capsys.readouterr().out


def test_folders_that_are_no_sweeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, answer in (
        ([], "name one folder of a sweep"), ([str(tmp_path)], "is no sweep"), ([str(tmp_path / "x")], "cannot be read"),
    ):  # fmt: skip
        assert main(arguments) == 2
        assert answer in capsys.readouterr().err


@pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is None, reason="hydra-optuna-sweeper is missing"
)
def test_optuna_finds_the_points_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A trial that fails is passed over; the others minimise what their runs validated to."""
    runs = Runs(lambda config: Outcome(1 if len(runs.seen) == 2 else 0))
    argv = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1"]
    assert sweep(tmp_path, runs, *argv, "optim.lr=tag(log,interval(1e-4,1e-2))") == 1
    assert len(runs.seen) == 4
    folder = tmp_path / "sweeps" / "default"
    best = min(rate for number, rate in enumerate(runs.rates) if number != 1)
    assert f"best_value: {best}" in (folder / "optimization_results.yaml").read_text()
    assert len(read_points(folder)) == 4
