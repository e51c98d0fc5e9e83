"""Run recorded steps of a run again, from the nearest checkpoint, in a folder of their own.

A run is a pure function of configuration, corpus and ledger, so that a replay is a real run that is given the ledger:
what it logs must equal, bit for bit on the same layout, what was logged the first time.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from engine.checkpoint import folder as folders
from engine.checkpoint.reader import open_checkpoint, read_manifest
from engine.config import Config
from engine.errors import CheckpointError, ConfigError
from engine.monitor import attempts
from engine.stability.actions import ROLLBACK, Action, check_intents
from engine.stability.ledger import INTENT, Record, read_ledger

COMPARED = ("loss", "grad_norm", "lr", "consumed_samples", "skipped")


@dataclass(frozen=True)
class Plan:
    """What is replayed: steps (begin, step] of `timeline`, and the configuration, whose run folder is the scratch."""

    config: Config
    begin: int
    step: int
    timeline: int
    scratch: Path


def prepare(run: Path, step: int, timeline: int | None, scratch: Path, *, from_start: bool = False) -> Plan:
    """Make `scratch` a run folder that stands at the newest checkpoint before `step`, with the ledger of `timeline`.

    `timeline` counts the rollbacks before what is replayed; None: all of them. ConfigError or CheckpointError when the
    run cannot be replayed.
    """
    records = records_of(run, timeline)
    found = None if from_start else nearest(run, step, len(records))
    config = read_config(run, step)
    checkpoints = scratch / "checkpoints"
    checkpoints.mkdir(parents=True)
    if found is not None:
        source, target = folders.step_path(run / "checkpoints", found), folders.step_path(checkpoints, found)
        target.mkdir()
        for file in source.iterdir():
            _link(file, target / file.name)
    (scratch / "ledger.jsonl").write_bytes(b"".join(record.line + b"\n" for record in records))
    if (run / "tokenizer.json").exists():
        shutil.copyfile(run / "tokenizer.json", scratch / "tokenizer.json")
    config.run.root, config.run.name = str(scratch.parent), scratch.name
    config.monitor.wandb, config.monitor.console = "off", "off"
    config.faults = [fault for fault in config.faults if fault["what"] == "poison"]  # data are spoilt for good
    config.checkpoint.load, config.checkpoint.interval, config.train.eval_interval = "auto", 0, 0
    config.data.valid = {}  # what was validated is not repeated
    config.stability.rollback, config.stability.drift_interval = False, 0  # the ledger says what was decided: no more
    return Plan(config, found or 0, step, sum(map(_goes_back, records)), scratch)


def read_config(run: Path, step: int) -> Config:
    """Return the configuration that trained step `step`, parallel.dp filled in.

    It is that of the first checkpoint kept from there on: the run may have gone on with another one later.
    """
    steps = folders.saved_steps(run / "checkpoints")
    chosen = min((saved for saved in steps if saved >= step), default=max(steps, default=0))
    manifest = read_manifest(folders.step_path(run / "checkpoints", chosen)) if steps else None
    if manifest is None:
        raise CheckpointError(f"{run} holds no checkpoint to take the configuration from; name a run folder that does.")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), manifest.meta["config"]))
    assert isinstance(config, Config)
    if step > config.train.steps:
        raise ConfigError(f"step={step} is behind the end of the run, train.steps={config.train.steps}.")
    parallel = config.parallel
    parallel.dp = int(manifest.meta["world"]) // (parallel.tp * parallel.pp * parallel.cp)
    return config


def records_of(run: Path, timeline: int | None) -> list[Record]:
    """Return the records of the ledger before rollback number `timeline` was decided; all when None."""
    chain = read_ledger(run / "ledger.jsonl")[0]
    check_intents(chain)
    records = chain.records
    if timeline is None:
        return records
    places = [place for place, record in enumerate(records) if _goes_back(record)]
    if not 0 <= timeline <= len(places):
        raise ConfigError(
            f"timeline={timeline}: the run was rolled back {len(places)} times; write 0 to {len(places)}."
        )
    return records if timeline == len(places) else records[: places[timeline]]


def _goes_back(record: Record) -> bool:
    return record.kind == INTENT and Action.from_plain(record.body["action"]).kind == ROLLBACK


def nearest(run: Path, step: int, known: int) -> int | None:
    """Return the newest checkpoint before `step` that knows of no more than the first `known` records."""
    for saved in folders.saved_steps(run / "checkpoints"):
        manifest = read_manifest(folders.step_path(run / "checkpoints", saved))
        if saved < step and manifest is not None and manifest.meta.get("stability", {}).get("known", 0) <= known:
            return saved
    return None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


# -- afterwards ------------------------------------------------------------------------------------------------


def compare(run: Path, plan: Plan) -> tuple[list[str], int]:
    """Return a line for each step replayed, and how many steps differ from what was logged, by a bit or more."""
    before, now = rows(run, plan.timeline), rows(plan.scratch, plan.timeline)
    lines, differing = [], 0
    for step in sorted(now):
        old = before.get(step)
        if old is None:
            lines.append(f"step {step}: loss {now[step]['loss']}, not in the run's metrics.jsonl")
            continue
        wrong = [key for key in COMPARED if old.get(key) != now[step].get(key)]
        differing += bool(wrong)
        what = "; ".join(f"{key} was {old.get(key)}" for key in wrong) or "as logged"
        lines.append(f"step {step}: loss {now[step]['loss']}, gradient norm {now[step]['grad_norm']}: {what}")
    return lines, differing


def rows(run: Path, timeline: int) -> dict[int, dict[str, Any]]:
    """Return the records of training steps of a timeline, by step."""
    records = attempts.records(run / "metrics.jsonl")
    return {row["step"]: row for row in records if "loss" in row and row.get("timeline", 0) == timeline}


def same_weights(run: Path, plan: Plan) -> bool | None:
    """Say whether the weights and moments equal the run's checkpoint of that step; None where it has none."""
    theirs = folders.step_path(run / "checkpoints", plan.step)
    if not theirs.exists():
        return None
    one, two = open_checkpoint(theirs), open_checkpoint(folders.step_path(plan.scratch / "checkpoints", plan.step))
    return one.names() == two.names() and all(torch.equal(one.whole(key), two.whole(key)) for key in one.names())
