"""The entry point: validate first, then start the ranks the layout needs with the user's own words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.config import Config
from engine.errors import ConfigError
from launch import pretrain
from launch.codes import Outcome
from launch.settings import run_with_config
from tests.launch.processes import REPO, environment


class Recorder:
    """Stands for start_ranks."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.calls: list[tuple[list[str], int]] = []

    def __call__(self, command: list[str], count: int, folder: Path, max_restarts: int, **more: object) -> Outcome:
        self.calls.append((command, count))
        return self.outcome


def main(monkeypatch: pytest.MonkeyPatch, *argv: str, outcome: Outcome = Outcome(0)) -> tuple[int, Recorder]:
    recorder = Recorder(outcome)
    monkeypatch.setattr("launch.ranks.start_ranks", recorder)
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *argv])
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    try:
        return pretrain.main(), recorder
    except SystemExit as end:
        return int(end.code or 0), recorder


def test_ranks_read_the_same_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: mine\nffn: 96\n")
    paths = ["data.paths=[a b,[0.5,'c,d']]", "data.format=auto", "data.cache_dir=${run.root}/x"]
    argv = ["--config-dir", str(tmp_path), "model=mine", "parallel=tp2", "run.device=cpu", *paths]
    code, recorder = main(monkeypatch, *argv)
    ((command, count),) = recorder.calls
    assert (code, count) == (0, 2)
    assert command[:2] == [sys.executable, str(REPO / "launch" / "pretrain.py")]
    configs: list[Config] = []

    def keep(config: Config, overrides: list[str]) -> Outcome:
        configs.append(config)
        return Outcome(0)

    for words in (argv, command[2:]):
        assert run_with_config(keep, words) == 0
    assert configs[0] == configs[1]
    assert configs[0].model.ffn == 96


def test_a_layout_that_cannot_run_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, recorder = main(monkeypatch, "parallel.tp=3")
    assert (code, recorder.calls) == (2, [])
    assert "parallel.tp=3 does not divide model.heads=4" in capsys.readouterr().err


@pytest.mark.parametrize(("outcome", "jobs"), [(Outcome(0), 3), (Outcome(0, stopped=True), 1), (Outcome(1), 3)])
def test_a_sweep_goes_on_until_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcome: Outcome, jobs: int
) -> None:
    argv = ["-m", f"run.root={tmp_path}", "run.device=cpu", "optim.lr=0.1,0.2,0.3"]
    code, recorder = main(monkeypatch, *argv, outcome=outcome)
    assert (code, len(recorder.calls)) == (outcome.code, jobs)


@pytest.mark.parametrize(
    ("layout", "gpus", "ranks"),
    [
        ({"tp": 2, "pp": 2}, 0, 4),
        ({"tp": 2, "dp": 3}, 0, 6),
        ({"tp": 2}, 8, 8),  # replicas fill the GPUs
        ({"tp": 2, "dp": 1}, 8, 2),
    ],
)
def test_number_of_ranks(layout: dict[str, int], gpus: int, ranks: int) -> None:
    config = Config()
    vars(config.parallel).update(layout)
    assert pretrain.ranks_to_start(config, gpus) == (ranks, ranks)


@pytest.mark.parametrize(
    ("cluster", "layout", "gpus", "ranks"),
    [
        ({"nodes": 2}, {"tp": 2, "pp": 2}, 0, (2, 4)),  # the layout's, shared out
        ({"nodes": 2}, {"tp": 2}, 8, (8, 16)),  # the GPUs
        ({"nodes": 3, "gpus_per_node": 4}, {"tp": 2}, 0, (4, 12)),  # submitted from a machine without any
        ({"nodes": 2, "ranks_per_node": 1, "gpus_per_node": 4}, {"pp": 2}, 8, (1, 2)),
    ],
)
def test_number_of_ranks_of_nodes(
    cluster: dict[str, int], layout: dict[str, int], gpus: int, ranks: tuple[int, int]
) -> None:
    config = Config()
    vars(config.cluster).update(kind="slurm", **cluster)
    vars(config.parallel).update(layout)
    assert pretrain.ranks_to_start(config, gpus) == ranks


def test_a_dry_run_starts_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, recorder = main(monkeypatch, "--dry-run", "parallel.tp=2", "run.device=cpu")
    assert (code, recorder.calls) == (0, [])
    assert capsys.readouterr().out == "trimaran: 2 rank(s) would start on this machine, 2 in all.\n"


def test_more_ranks_than_gpus_are_refused() -> None:
    config = Config()
    config.parallel.tp = 16
    with pytest.raises(ConfigError, match="16 ranks, but this machine has 8 GPUs"):
        pretrain.ranks_to_start(config, 8)


def test_command_line_of_a_user() -> None:
    """The script itself, in a process of its own, from another folder."""

    def call(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(REPO / "launch" / "pretrain.py"), *argv],
            env=environment(), cwd="/", capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    wrong = call("optim.lrr=1")
    assert (wrong.returncode, wrong.stderr) == (2, "trimaran: unknown key optim.lrr. Did you mean 'optim.lr'?\n")
    shown = call("--cfg", "job", "experiment=default")
    assert shown.returncode == 0
    assert "name: llama-tiny" in shown.stdout
