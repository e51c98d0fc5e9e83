"""Every command of the README, run as it is written but for sizes: fewer ranks, a tiny model, two steps."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from engine.data.tokenizer import Tokenizer
from tests.system.runs import REPO, TINY, corpus, environment

pytestmark = pytest.mark.timeout(600)
README = (REPO / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.strip().splitlines()]

# What a laptop cannot be asked for, and what stands in for it.
SMALLER = {"--nproc-per-node=8": "--nproc-per-node={ranks}", "parallel.tp=8": "parallel.tp=1", "node1": "localhost",
           "profile.steps=10:12": "profile.steps=1:2"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with the files that the README speaks of."""
    path = tmp_path_factory.mktemp("user")
    lines = corpus(path).read_text().splitlines()
    (path / "books").mkdir()
    texts = [json.loads(line)["text"] for line in lines]
    for number in range(0, 400, 20):
        (path / "books" / f"{number}.txt").write_text("\n".join(texts[number : number + 4]))
    Tokenizer.train(texts, 300).save(path / "tokenizer.json")
    return path


def words(command: str, ranks: int, port: int) -> list[str]:
    """Turn a README line into the arguments that are run: full paths, smaller sizes."""
    asks = "--dry-run" in command  # for no more than a file: exactly as it is written
    for long, short in () if asks else SMALLER.items():
        command = command.replace(long, short.format(ranks=ranks))
    command = command.replace(":29500", f":{port}")
    parts = shlex.split(command)
    parts = [str(REPO / part) if part.startswith("launch/") else part for part in parts]
    if parts[0] == "torchrun":
        parts[:1] = [sys.executable, "-m", "torch.distributed.run"]
    elif parts[0] == "python":
        parts[0] = sys.executable
    sized = [place for place, part in enumerate(parts) if part.endswith(("launch/pretrain.py", "launch/doctor.py"))]
    if sized and not asks and not {"--help", "--cfg"} & set(parts):
        # the line's own settings come last and win, but for the length of the run
        at = sized[0] + 1
        own = {part.partition("=")[0] for part in parts[at:]}
        parts[at:at] = [s for s in [*TINY, "run.device=cpu", "train.global_batch=8"] if s.partition("=")[0] not in own]
        parts = [part for part in parts if not part.startswith(("train.steps=", "data.workers="))]
        parts += ["train.steps=2", "data.workers=1", "model.kv_heads=2", "model.heads=4", "model.layers=4"]
    return parts


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def start(command: str, folder: Path, ranks: int = 8, port: int = 0) -> subprocess.Popen[str]:
    parts = words(command, ranks, port)
    parts = [part for part in parts if not part.startswith("model.kv_heads") or "gpt" not in command]
    return subprocess.Popen(
        parts, cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_readme_command(number: int, folder: Path) -> None:
    """In the README's order: later lines use what earlier ones left (runs/mine, the index)."""
    command = COMMANDS[number]
    if command.startswith("make "):
        plan = subprocess.run(
            ["make", "-n", *command.split()[1:]], cwd=REPO, text=True, capture_output=True, check=True
        )
        assert {"make train": "experiment=default", "make test": "-m pytest"}[command] in plan.stdout
    elif command.startswith("srun "):
        pytest.skip("tests/slurm/test_jobs.py plays it")
    elif "--nnodes=2" in command or "cluster.nodes=2" in command:
        port = free_port()
        nodes = [start(command, folder, ranks=1, port=port) for _ in range(2)]
        outputs = [finish(node) for node in nodes]
        wanted = "ok " if "doctor.py" in command else "validation at step 2"
        assert any(wanted in output for output in outputs), outputs
    elif "dashboard.py project" in command:
        process = start(command, folder)
        output, _ = process.communicate(timeout=280)
        assert (process.returncode, "wandb is not logged in" in output) == (2, True), output
    else:
        output = finish(start(command, folder))
        if "generate.py" in command:
            assert output.startswith("import ")
        elif "--dry-run" in command:
            assert output.rstrip().endswith("is written, not submitted.")
        elif "doctor.py" in command:
            assert not re.search(r"^fault ", output, re.MULTILINE), output
        elif "report.py" in command:
            assert output.startswith("report runs/")
        elif "sweep.py" in command:
            assert output.count("done") == 4
        elif "--help" in command:
            assert "parallel.sequence_parallel" in output
            assert "llama3-8b" in output
        elif "--cfg" in command:
            assert "sequence_parallel:" in output
        elif "pretrain.py" in command:
            assert "validation at step 2" in output


def test_the_readme_has_commands_and_its_folders_exist() -> None:
    assert len(COMMANDS) >= 15
    for folder in re.findall(r"`((?:launch|conf|engine|csrc)/[\w/.]*)`", README):
        assert (REPO / folder).exists(), folder


def test_the_table_of_ratios_is_filled_in() -> None:
    rows = [line for line in README.splitlines() if line.startswith("|") and "DistributedDataParallel" in line]
    assert rows, "run make bench and put its rows into the README"
