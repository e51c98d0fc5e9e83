"""Score a checkpoint on any layout: python launch/evaluate.py run=runs/default [checkpoint=STEP] [key=value ...]

    data.valid.NAME=PATH     a text, jsonl or indexed corpus (or a list, as for data.paths): loss, perplexity and
                             bits per byte of all of it
    tasks=PATH               a yaml file that defines a task of lm-evaluation-harness, or a folder of them

With neither, what the run's own validations score. parallel.* is the layout, whatever layout trained it (one rank where
nothing is said); precision.dtype, train.micro_batch, ops.*, run.device and data.cache_dir can be set too. torchrun's
ranks are used where it started them. A table is printed, and evaluation.json in the run folder keeps it, by step.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import ConfigError
from engine.evaluate.plan import Plan, make_plan
from engine.validate import validate
from launch.pretrain import ranks_to_start
from launch.rank import LAUNCHER, is_rank, leave, run_rank
from launch.ranks import start_ranks
from launch.script import run_script


def main(arguments: list[str]) -> int:
    """Be a rank where one was started, else make the plan and start the ranks."""
    if is_rank():
        return leave(run_rank(lambda: _work(arguments)))
    return run_script(_launch, __doc__, arguments)


def read_plan(arguments: list[str]) -> Plan:
    """Return what the arguments ask for; ConfigError for what cannot be."""
    own = {"run": "runs/default"}
    overrides = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in ("run", "checkpoint", "tasks"):
            own[key] = value
        else:
            overrides.append(argument)
    if "checkpoint" in own and not own["checkpoint"].isdecimal():
        raise ConfigError(f"checkpoint={own['checkpoint']} is not a step; write a whole number, or leave it out.")
    step = int(own["checkpoint"]) if "checkpoint" in own else None
    return make_plan(Path(own["run"]), step, Path(own["tasks"]) if "tasks" in own else None, overrides)


def _launch(arguments: list[str]) -> int:
    import torch

    plan = read_plan(arguments)
    gpus = 0 if plan.config.run.device == "cpu" else torch.cuda.device_count()
    _, ranks = ranks_to_start(plan.config, gpus)
    plan.config.train.global_batch = plan.config.train.micro_batch * ranks
    validate(plan.config, ranks)
    with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:
        file = Path(folder) / "plan.yaml"
        file.write_text(yaml.safe_dump(plan.to_plain()))
        return start_ranks([sys.executable, str(Path(__file__).resolve()), str(file)], ranks).code


def _work(arguments: list[str]) -> int:
    from engine.evaluate.work import evaluate

    ours = LAUNCHER in os.environ
    return evaluate(Plan.from_plain(yaml.safe_load(Path(arguments[0]).read_text())) if ours else read_plan(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
