"""The script of a job: what sbatch and bash read in it, and that nothing else gets in. Real jobs are in tests/slurm."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config import Config
from launch import pretrain
from launch.codes import Outcome
from launch.settings import run_with_config
from tests.launch.test_settings import compose


def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *argv: str, code: int = 0) -> Path:
    """Write a job with --dry-run; return the folder of runs."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    words = ["cluster=slurm", "--dry-run", f"run.root={tmp_path}/runs", "run.device=cpu", *argv]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *words])
    try:
        assert pretrain.main() == code
    except SystemExit as end:
        assert end.code == code  # noqa: PT017
    return tmp_path / "runs"


def options(script: Path) -> dict[str, str]:
    """Return what sbatch reads."""
    lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    pairs = [shlex.split(line)[1].removeprefix("--").partition("=") for line in lines]
    assert len({name for name, _, _ in pairs}) == len(pairs)
    return {name: value for name, _, value in pairs}


def configuration(folder: Path) -> Config:
    seen: list[Config] = []

    def task(config: Config, overrides: list[str]) -> Outcome:
        seen.append(config)
        return Outcome(0)

    assert run_with_config(task, [f"--config-dir={folder}", "--config-name=job"]) == 0
    return seen[0]


def test_the_script_asks_for_what_was_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = write(
        tmp_path, monkeypatch, "cluster.nodes=64", "cluster.gpus_per_node=8", "parallel.tp=4", "parallel.pp=4",
        "train.micro_batch=1", "train.global_batch=64", "model.layers=8",
        "cluster.account=lab", "cluster.partition=gpu", "cluster.qos=high", "cluster.time=12:00:00",
        "cluster.interface=ib0", "cluster.ib_hca=mlx5_0", "cluster.warn_s=240", "parallel.timeout_s=300",
        'cluster.sbatch=["--constraint=h100"]', "cluster.prologue=[module load cuda]",
        "cluster.container=\"apptainer exec --nv 'my image.sif'\"", "cluster.srun=[--label]", "run.name=big/one%",
    )  # fmt: skip
    script = runs / "big/one%/slurm/job.sh"
    assert capsys.readouterr().out == f"trimaran: {script} is written, not submitted.\n"
    assert options(script) == {
        "job-name": "big_one_", "nodes": "64", "ntasks-per-node": "1", "exclusive": "", "mem": "0",
        "gpus-per-node": "8", "account": "lab", "partition": "gpu", "qos": "high", "time": "12:00:00",
        "signal": "USR1@240", "requeue": "", "open-mode": "append", "output": f"{runs}/big/one%%/slurm/%j.log",
        "constraint": "h100",
    }  # fmt: skip
    text = script.read_text()
    for line in (
        "module load cuda", "export NCCL_SOCKET_IFNAME=ib0", "export GLOO_SOCKET_IFNAME=ib0",
        "export NCCL_IB_HCA=mlx5_0", "export TORCH_NCCL_ASYNC_ERROR_HANDLING=1",
        "export TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC=360", "# cluster.prologue",
    ):  # fmt: skip
        assert f"\n{line}\n" in text
    assert "apptainer exec --nv 'my image.sif' " + shlex.quote(sys.executable) in text
    assert 'SLURM_CPUS_ON_NODE}" --label \\\n' in text
    assert "cluster.ranks_per_node=8 " in text
    assert max(map(len, (line for line in text.splitlines() if line.startswith("# ")))) <= 102
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_every_export_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (write(tmp_path, monkeypatch, "cluster.interface=ib0") / "default/slurm/job.sh").read_text().splitlines()
    exports = [number for number, line in enumerate(lines) if line.startswith("export ")]
    assert len(exports) >= 4
    assert all(lines[number - 1].startswith("# ") for number in exports)


def test_the_configuration_beside_it_is_the_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [
        "optim.lr=0.125", "data.paths=[[0.5,'a b.jsonl'],c]", "data.format=auto", "ops.overrides={rope: reference}",
        "cluster.nodes=2", "parallel.dp=2", "+faults=[{what: kill, rank: 1, step: 7}]",
    ]  # fmt: skip
    runs = write(tmp_path, monkeypatch, *argv)
    wanted = compose("cluster=slurm", f"run.root={runs}", "run.device=cpu", *argv)
    assert configuration(runs / "default/slurm") == wanted


def test_each_task_of_an_array_has_a_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = 'cluster.array=["train.seed=1","train.seed=2 optim.lr=0.5"]'
    runs = write(tmp_path, monkeypatch, array, "cluster.array_limit=1", "cluster.cpus_per_node=4", "run.name=s")
    asked = options(runs / "s/slurm/job.sh")
    assert (asked["array"], asked["cpus-per-task"]) == ("0-1%1", "4")
    assert asked["output"] == f"{runs}/s-%a/slurm/%A_%a.log"
    tasks = [configuration(runs / f"s-{number}/slurm") for number in range(2)]
    assert [(task.run.name, task.train.seed, task.optim.lr) for task in tasks] == [("s-0", 1, 3e-4), ("s-1", 2, 0.5)]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ('cluster.array=["train.sed=1"]', "unknown key train.sed. Did you mean"),
        ('cluster.array=["train.seed=x"]', "could not be converted to Integer"),
        ('cluster.array=["parallel.tp=3"]', "parallel.tp=3 does not divide"),
        ('"run.name=a\nb"', "cannot"),
        ("cluster.nodes=3", "cluster.nodes=3 does not divide the parallel.tp*pp*cp*dp = 1 ranks"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argument: str, words: str
) -> None:
    runs = write(tmp_path, monkeypatch, argument.strip('"') if "\n" in argument else argument, code=2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said
    assert not list(runs.rglob("job.*"))


def test_without_sbatch_the_script_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    words = ["cluster=slurm", f"run.root={tmp_path}", "run.device=cpu"]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *words])
    with pytest.raises(SystemExit) as end:
        pretrain.main()
    assert end.value.code == 2
    assert "job.sh is written, but there is no sbatch here" in capsys.readouterr().err
    assert (tmp_path / "default/slurm/job.sh").exists()
