"""What an evaluation is of: a checkpoint, the layout it is put on, and the texts and tasks it is scored on."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.checkpoint.folder import saved_steps, step_path
from engine.config import ClusterConfig, Config, ParallelConfig
from engine.errors import CheckpointError, ConfigError, DataError, did_you_mean
from engine.interchange.saved import SavedModel
from engine.objectives.rules import check_left_to_right

_OPEN = ("data.valid", "ops.overrides")  # mappings with keys of the user's choice
KEYS = (
    *(f"parallel.{name}" for name in ("tp", "pp", "dp", "sequence_parallel", "schedule", "virtual_stages")),
    "parallel.stage_layers", "parallel.timeout_s", *_OPEN, "data.cache_dir", "data.workers", "data.jsonl_key",
    "precision.dtype", "train.micro_batch", "train.eval_samples", "ops.backend", "ops.head_block_mb", "run.device",
    "run.threads",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """`config` is the run's but for the layout and what was asked for; its data.valid are the sets that are scored.

    `split`: score the validation part of the run's data as well; `tasks`: a yaml file or a folder of them, or None.
    """

    config: Config
    run: Path
    checkpoint: Path
    step: int
    split: bool
    tasks: Path | None

    def to_plain(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return {
            **vars(self), "config": asdict(self.config), "run": str(self.run), "checkpoint": str(self.checkpoint),
            "tasks": None if self.tasks is None else str(self.tasks),
        }  # fmt: skip

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Plan:
        """Return what `to_plain` was made of."""
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain["config"]))
        assert isinstance(config, Config)
        tasks = None if plain["tasks"] is None else Path(plain["tasks"])
        return cls(config, Path(plain["run"]), Path(plain["checkpoint"]), plain["step"], plain["split"], tasks)


def make_plan(run: Path, step: int | None, tasks: Path | None, overrides: Sequence[str]) -> Plan:
    """Return the evaluation of a run's checkpoint (None: its newest whole one), as `overrides`, key=value, ask.

    The layout is one rank unless they say otherwise. Scored is what they or `tasks` name; where they name nothing,
    what the run's own validations score. ConfigError, CheckpointError and DataError say what cannot be.
    """
    saved = SavedModel.open(run if step is None else _path_of(run, step))
    asked = _read(overrides)
    named = OmegaConf.select(asked, "data.valid") or {}
    own = tasks is None and not named
    layout = {"parallel": asdict(ParallelConfig())}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), saved.checkpoint.meta["config"], layout)
        if not own:
            merged.data.valid = {}
        config = OmegaConf.to_object(OmegaConf.merge(merged, asked))
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from None
    assert isinstance(config, Config)
    config.model, config.model.vocab_size = saved.config, saved.vocab
    config.data.seq_len, config.checkpoint.load, config.faults = saved.context, "auto", []
    config.data.tokenizer = _tokenizer(run, saved, needed=tasks is not None)
    config.cluster = ClusterConfig()  # the run's nodes are not ours
    if OmegaConf.select(asked, "data.cache_dir") is None and not Path(config.data.cache_dir).is_dir():
        config.data.cache_dir = str(run.parent / "data")
    config.train.global_batch = config.train.micro_batch * (config.parallel.dp or 1)
    config.train.ramp = None
    split = own and config.data.split[1] > 0
    _check(config, run, split, tasks)
    return Plan(config, run, saved.checkpoint.path, saved.checkpoint.step, split, tasks)


def _path_of(run: Path, step: int) -> Path:
    steps = saved_steps(run / "checkpoints")
    if step not in steps:
        there = f"its checkpoints are of steps {', '.join(map(str, sorted(steps)))}" if steps else "it holds none"
        raise CheckpointError(f"{run} holds no checkpoint of step {step}; {there}.")
    return step_path(run / "checkpoints", step)


def _read(overrides: Sequence[str]) -> Any:
    for override in overrides:
        key = override.partition("=")[0]
        if "=" not in override:
            raise ConfigError(f"unknown setting '{override}'; write key=value.")
        if key not in KEYS and not key.startswith(tuple(f"{opened}." for opened in _OPEN)):
            raise ConfigError(f"{key} is nothing that an evaluation can change.{did_you_mean(key, KEYS)}")
    return OmegaConf.from_dotlist(list(overrides))


def _tokenizer(run: Path, saved: SavedModel, *, needed: bool) -> str:
    """Return data.tokenizer; DataError where the run's is gone, or never was though tasks need it."""
    if saved.tokenizer_file is not None:
        return str(saved.tokenizer_file)
    if saved.checkpoint.meta["tokenizer"] is not None or needed:
        raise DataError(f"{run} has no tokenizer.json, without which text is no tokens; put the run's own there.")
    return "none"


def _check(config: Config, run: Path, split: bool, tasks: Path | None) -> None:
    check_left_to_right(str(run), config.objective)
    if not split and not config.data.valid and tasks is None:
        raise ConfigError(f"{run} was trained without validation; write data.valid.NAME=PATH or tasks=PATH.")
    if tasks is None:
        return
    if not tasks.exists():
        raise ConfigError(f"tasks={tasks}: there is no such file or folder; name a yaml file that defines a task.")
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("tasks need the lm-evaluation-harness; pip install lm-eval, or leave tasks out.")
