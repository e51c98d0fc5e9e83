"""An evaluation from top to bottom, on this rank: load, score, and on the first rank tell and write."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch.distributed as dist

from engine.checkpoint.reader import Checkpoint, read_manifest
from engine.checkpoint.state import load_parameters
from engine.chunks import build_chunks
from engine.config import Config
from engine.data.build import build_data
from engine.data.samples import Sample, Samples
from engine.data.tokenizer import Tokenizer
from engine.data.valid_sets import ValidSet, open_valid_sets
from engine.device import DTYPES, Device, local_rank, set_threads
from engine.errors import CheckpointError, explained
from engine.evaluate.forward import Forward
from engine.evaluate.lead import Lead, follow
from engine.evaluate.plan import Plan
from engine.evaluate.sets import Score, SetScorer
from engine.evaluate.text import TextModel
from engine.mesh import Mesh, join_world
from engine.ops import backend
from engine.parallel.linear import TensorParallel
from engine.validate import resolve_dp, validate

SPLIT = "validation split"  # no name that a set may have
FILE = "evaluation.json"


def evaluate(plan: Plan) -> int:
    """Run this rank's part; return 0. The first rank prints a table and adds to evaluation.json of the run."""
    config = plan.config
    set_threads(config.run.threads, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    device = Device.pick(config.run.device, local_rank())
    join_world(device, config.parallel.timeout_s)
    try:
        found, layout = _evaluate(plan, device)
        if dist.get_rank() == 0:
            print(f"step {plan.step} of {plan.run}, {layout}, {config.precision.dtype}\n\n{describe(found)}")
            write(plan, {"layout": layout, "dtype": config.precision.dtype, **found})
    finally:
        dist.destroy_process_group()
    return 0


def _evaluate(plan: Plan, device: Device) -> tuple[dict[str, Any], str]:
    config, world = plan.config, dist.get_world_size()
    dp = resolve_dp(config, world)
    config.train.global_batch = config.train.micro_batch * dp
    validate(config, world)
    mesh = Mesh(
        pp=config.parallel.pp, dp=dp, cp=1, tp=config.parallel.tp, device=device, timeout_s=config.parallel.timeout_s
    )
    backend.select(config.ops.backend, config.ops.overrides, device.torch_device.type)
    forward = load_forward(config, plan.checkpoint, mesh)
    tokenizer_file = None if config.data.tokenizer == "none" else Path(config.data.tokenizer)
    tokenizer = None if tokenizer_file is None else Tokenizer.load(tokenizer_file)
    vocab = config.model.vocab_size
    assert vocab is not None

    def notice(text: str) -> None:
        if mesh.world.is_first:
            print(text, flush=True)

    is_writer = mesh.world.is_first
    sets = open_valid_sets(
        config.data, tokenizer, tokenizer_file, vocab, is_writer=is_writer, barrier=dist.barrier, notice=notice
    )
    if plan.split:
        data = build_data(
            config.data, config.objective, config.train.seed, vocab, config.model.vocab_multiple,
            is_writer=is_writer, barrier=dist.barrier, notice=notice,
        )  # fmt: skip
        assert data.valid is not None
        sets.insert(0, ValidSet(SPLIT, [First(data.valid, config.train.eval_samples)], None))
    scores = SetScorer(config.data, sets, tokenizer, forward).scores()
    found: dict[str, Any] = {"sets": {name: _plain(score) for name, score in scores.items()}}
    if plan.tasks is not None:
        assert tokenizer is not None
        found["tasks"] = _tasks(plan.tasks, forward, mesh, tokenizer, config)
    return found, mesh.describe()


def load_forward(config: Config, path: Path, mesh: Mesh) -> Forward:
    """Build this rank's part of the model and fill it from a checkpoint of any layout, verified before."""
    manifest = read_manifest(path)
    if manifest is None:
        raise CheckpointError(f"the checkpoint {path} is gone or damaged; evaluate another one.")
    vocab = config.model.vocab_size
    assert vocab is not None
    tp = TensorParallel(
        mesh.tp, config.parallel.sequence_parallel, DTYPES[config.precision.dtype], mesh.device.torch_device
    )
    chunks = build_chunks(config, vocab, mesh, tp)
    checkpoint = Checkpoint(path, manifest)
    for chunk in chunks:
        load_parameters(checkpoint, chunk.parameters())
    return Forward(config, chunks, tp, mesh)


class First:
    """The first samples of a validation part, which training scores."""

    def __init__(self, samples: Samples, count: int) -> None:
        self._samples, self._count, self.vocab = samples, min(count, samples.per_epoch), samples.vocab

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Sample:
        return self._samples[number]


def _tasks(
    path: Path, forward: Forward, mesh: Mesh, tokenizer: Tokenizer, config: Config
) -> dict[str, dict[str, float]]:
    """Run tasks: the harness is one process, the first rank; {} on the others."""
    if not mesh.world.is_first:
        follow(forward, mesh)
        return {}
    with Lead(forward, mesh) as lead:
        from engine.evaluate.harness import run_tasks  # here, not above: it takes seconds to load

        return run_tasks(TextModel(lead, tokenizer, config.data.seq_len, config.model.vocab_size or 0), path)


def _plain(score: Score) -> dict[str, Any]:
    return {**score.metrics(), "tokens": score.tokens, "bytes": score.bytes}


# -- telling -------------------------------------------------------------------------------------------------


def describe(found: dict[str, Any]) -> str:
    """Return the results as a table of text."""
    rows = [["set", "loss", "perplexity", "bits per byte", "tokens"]] if found["sets"] else []
    for name, score in found["sets"].items():
        per_byte = f"{score['bits_per_byte']:.4f}" if "bits_per_byte" in score else "-"
        rows.append([name, f"{score['loss']:.4f}", f"{score['perplexity']:.2f}", per_byte, f"{score['tokens']:,}"])
    tables = [_aligned(rows)] if rows else []
    lines = [
        [task, metric, f"{value:.4f}"]
        for task, metrics in found.get("tasks", {}).items()
        for metric, value in metrics.items()
    ]
    return "\n\n".join([*tables, *([_aligned([["task", "metric", "value"], *lines])] if lines else [])])


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [
        [cell.rjust(width) if n else cell.ljust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    return "\n".join("  ".join(row) for row in padded)


def write(plan: Plan, found: dict[str, Any]) -> None:
    """Add results to evaluation.json of the run, which has an object per step; later ones of a name replace it."""
    path = plan.run / FILE
    with explained(f"{path} cannot be written", "make room there or make it writable"):
        try:
            known = json.loads(path.read_text())
            old = dict(known.get(str(plan.step), {}))
        except (FileNotFoundError, ValueError, AttributeError, TypeError):
            known, old = {}, {}
        merged = {key: {**old.get(key, {}), **found.get(key, {})} for key in ("sets", "tasks")}
        known[str(plan.step)] = {**old, **found, **merged}
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(_finite(known), indent=1))
        os.replace(aside, path)


def _finite(value: Any) -> Any:
    """Put null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
