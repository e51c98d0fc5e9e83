"""Each prevention of spikes on and off, on a small model that is made unstable: `python -m tests.soak.prevention`.

Prints one table per trouble, with medians over seeds. A curve's excess is its largest loss above the lowest mean of
16 steps before; its spikes are the steps that the detectors of `engine.stability` call outliers or roll back for,
after the run.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from rich.console import Console

from engine.config import Config, StabilityConfig
from engine.data.batch import MicroBatch
from engine.data.build import build_data
from engine.data.loader import Loader, validation_batches
from engine.device import Device
from engine.mesh import Mesh
from engine.ops import backend
from engine.optim.schedules import plan
from engine.stability.signals import ROLLBACK, SKIP
from engine.stability.watch import Watch
from engine.step import Stepper
from tests.bench.table import Row, machine, show, to_markdown
from tests.ranks import run_ranks
from tests.stability.calibration import sail
from tests.stability.curves import Curve

STEPS, ONSET, SMOOTH = 240, 150, 16
CPU = Device(torch.device("cpu"), "gloo")
BASE = [
    "model.layers=2", "model.hidden=64", "model.heads=4", "model.ffn=176", "data.tokenizer_vocab=512",
    "data.seq_len=64", "data.workers=1", "train.global_batch=8", "train.micro_batch=8", f"train.steps={STEPS}",
    "optim.lr=5e-3", "optim.warmup_steps=0", "optim.eps=1e-15", "optim.beta2=0.99",
]  # fmt: skip


@dataclass(frozen=True)
class Trouble:
    """What makes the run unstable: overrides, a factor on the rate by step, batches whose tokens are noise."""

    title: str
    overrides: tuple[str, ...] = ()
    rate: Callable[[int], float] = lambda step: 1.0
    is_poisoned: Callable[[int], bool] = lambda step: False


def in_window(length: int) -> Callable[[int], bool]:
    return lambda step: ONSET <= step < ONSET + length


TROUBLES = {
    "window": Trouble("a rate 20 times too high for 10 steps", rate=lambda s: 20.0 if in_window(10)(s) else 1.0),
    "rate": Trouble("a rate 10 times too high all the time, without warm-up", ("optim.lr=5e-2",)),
    "poison": Trouble("5 batches of noise, without a fixed clip", ("optim.clip=0",), is_poisoned=in_window(5)),
}

OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "z-loss 1e-4": ("train.z_loss=1e-4",),
    "QK-norm": ("model.qk_norm=true",),
    "embedding gradient x 0.1": ("model.embedding_grad=0.1",),
    "embedding norm": ("model.embedding_norm=true",),
    "ZClip": ("optim.clip_mode=zclip",),
    "AdaGC": ("optim.clip_mode=adagc",),
    "update clip 1": ("optim.update_clip=1",),
    "update ratio up to 0.2": ("optim.max_update_ratio=0.2",),
    "beta2 0.95": ("optim.beta2=0.95",),
    "PaLM's beta2": ("optim.beta2_schedule=palm",),
    "eps 1e-8": ("optim.eps=1e-8",),
    "no decay of embeddings": ("optim.decay_embeddings=false",),
    "all learnt and damped": ("model.qk_norm=true", "train.z_loss=1e-4", "optim.clip_mode=adagc", "optim.update_clip=1",
                              "optim.beta2=0.95", "optim.eps=1e-8"),
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one run came to."""

    excess: float
    spikes: float
    valid: float


def configure(overrides: list[str]) -> Config:
    """Return the configuration of one run."""
    merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.from_dotlist([*BASE, *overrides]))
    made: Any = OmegaConf.to_object(merged)
    return made  # type: ignore[no-any-return]


def poison(micro: MicroBatch, step: int, vocab: int) -> MicroBatch:
    """Return the micro-batch with tokens and labels drawn at random."""
    drawn = torch.from_numpy(np.random.default_rng([step, 9]).integers(0, vocab, micro.tokens_bs.shape))
    spoilt = copy.copy(micro)
    object.__setattr__(spoilt, "tokens_bs", drawn)
    object.__setattr__(spoilt, "labels_bs", drawn.roll(-1, dims=1))
    return spoilt


def train(rank: int, world: int, config: Config, name: str) -> tuple[list[float], list[float], float]:
    """Body of the one rank: train through a trouble; return losses, gradient norms and the validation loss."""
    trouble = TROUBLES[name]
    backend.select(config.ops.backend)
    data = build_data(
        config.data, config.objective, config.train.seed, None, config.model.vocab_multiple, is_writer=True,
        barrier=dist.barrier,
    )  # fmt: skip
    assert data.valid is not None
    mesh = Mesh(pp=1, dp=1, cp=1, tp=1, device=CPU)
    stepper = Stepper(config, data.vocab, mesh, CPU)
    stepper.initialise()
    micro = {"micro_batch": config.train.micro_batch, "dp_rank": 0, "dp": 1}
    loader = Loader(data.train, data.collate, plan(0, STEPS, config.train), prefetch=0, **micro)
    losses, norms = [], []
    for step in range(STEPS):
        batches = loader.next()
        if trouble.is_poisoned(step):
            batches = [poison(batch, step, data.vocab) for batch in batches]
        result = stepper.run(step, batches, config.optim.lr * trouble.rate(step)).read()
        losses.append(result.loss)
        norms.append(result.grad_norm)
    valid = stepper.evaluate(validation_batches(data.valid, data.collate, 256, **micro)).item()
    return losses, norms, valid


def judge(losses: list[float], norms: list[float], valid: float) -> Outcome:
    """Say what a curve came to."""
    curve = Curve(np.array(losses), np.array(norms))
    means = np.convolve(curve.loss, np.ones(SMOOTH) / SMOOTH, "valid")
    best = np.minimum.accumulate(means)
    excess = float(np.max(curve.loss[SMOOTH:] - best[:-1]))
    places = sail(Watch(StabilityConfig()), curve).places
    return Outcome(excess, len(places[SKIP]) + len(places[ROLLBACK]), valid)


def trial(name: str, option: str, seeds: int, cache: Path) -> Outcome:
    """Return the medians over seeds."""
    found = []
    for seed in range(seeds):
        overrides = [*TROUBLES[name].overrides, *OPTIONS[option], f"train.seed={seed + 1}", f"data.cache_dir={cache}"]
        found.append(judge(*run_ranks(1, train, configure(overrides), name, timeout=600.0)[0]))
    return Outcome(*(median(getattr(one, field) for one in found) for field in ("excess", "spikes", "valid")))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.prevention", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(TROUBLES), default=list(TROUBLES), help="troubles")
    parser.add_argument("--options", nargs="+", choices=list(OPTIONS), default=list(OPTIONS), help="preventions")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each kind")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables there")
    args = parser.parse_args()
    console, tables, columns = Console(), list[str](), ("prevention", "largest excess", "spikes", "validation loss")
    with tempfile.TemporaryDirectory() as cache:
        for name in args.only:
            title, rows = f"{TROUBLES[name].title}; {machine()}", []
            for option in args.options:
                with console.status(f"{name}: {option}"):
                    outcome = trial(name, option, args.seeds, Path(cache))
                rows.append(Row(option, f"{outcome.excess:.2f}", f"{outcome.spikes:g}", f"{outcome.valid:.3f}"))
                console.print(name, *rows[-1].cells, sep="  ", highlight=False)
            show(title, columns, rows, console)
            tables.append(to_markdown(title, columns, rows))
    if args.markdown:
        args.markdown.write_text("\n".join(tables))


if __name__ == "__main__":
    main()
