"""Run recorded steps again and compare: python launch/replay.py run=runs/default step=340 [key=value ...]

Trains from the nearest checkpoint before `step` up to it, on the layout of the run, with the decisions of its ledger,
in a folder that is removed afterwards, and compares every number with what was logged; where the run saved a
checkpoint at that step, its weights too.

Keys: run, step (null: the newest checkpoint), timeline (null: after all rollbacks; 0: before the first one), start
(true: from the first step, not from a checkpoint). Exit codes: 0 when all are equal bit for bit, 1 when some differ,
2 for a mistake.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import yaml
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.checkpoint.folder import saved_steps
from engine.config import Config
from engine.errors import ConfigError, did_you_mean
from engine.replay import Plan, compare, prepare, same_weights
from launch.pretrain import ranks_to_start
from launch.rank import is_rank, leave, run_rank
from launch.ranks import start_ranks
from launch.script import run_script

KEYS = ("run", "step", "timeline", "start")


def main(arguments: list[str]) -> int:
    """Be a rank where one was started, else prepare, start the ranks and compare."""
    if is_rank():
        return leave(run_rank(lambda: _work(Path(arguments[0]))))
    return run_script(lambda given: _replay(_read(given)), __doc__, arguments)


def _read(arguments: list[str]) -> dict[str, str]:
    settings = {"run": "runs/default", "start": "false"}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in KEYS:
            raise ConfigError(f"unknown setting '{argument}'; write key=value.{did_you_mean(key, KEYS)}")
        if key in ("step", "timeline") and not value.isdecimal():
            raise ConfigError(f"{key}={value} is not a whole number.")
        if key == "start" and value not in ("true", "false"):
            raise ConfigError(f"start={value} is neither true nor false.")
        settings[key] = value
    return settings


def _replay(settings: dict[str, str]) -> int:
    run = Path(settings["run"])
    steps = saved_steps(run / "checkpoints")
    step = int(settings.get("step", steps[0] if steps else 0))
    timeline = int(settings["timeline"]) if "timeline" in settings else None
    with tempfile.TemporaryDirectory(prefix="replay-", dir=run.parent if run.parent.is_dir() else None) as folder:
        plan = prepare(run, step, timeline, Path(folder) / "run", from_start=settings["start"] == "true")
        if step <= plan.begin:
            raise ConfigError(f"step={step} is not after step {plan.begin}; write a later one.")
        (Path(folder) / "plan.yaml").write_text(yaml.safe_dump({"config": asdict(plan.config), "step": step}))
        script = str(Path(__file__).resolve())
        _, ranks = ranks_to_start(plan.config, gpus=0)
        print(f"replaying steps {plan.begin + 1} to {step} of {run}, timeline {plan.timeline}, on {ranks} rank(s)")
        outcome = start_ranks([sys.executable, script, str(Path(folder) / "plan.yaml")], ranks)
        return outcome.code or _tell(run, plan)


def _tell(run: Path, plan: Plan) -> int:
    lines, differing = compare(run, plan)
    print("\n".join(lines))
    equal = same_weights(run, plan)
    weights = "" if equal is None else f"; weights {'equal' if equal else 'DIFFER FROM'} those of the checkpoint"
    print(f"{len(lines)} steps replayed, {differing} of them otherwise than logged{weights}")
    return int(bool(differing) or equal is False)


def _work(file: Path) -> int:
    from engine.trainer import train

    plain = yaml.safe_load(file.read_text())
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain["config"]))
    assert isinstance(config, Config)
    return train(config, until=int(plain["step"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
