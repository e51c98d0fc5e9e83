"""What being watched costs a healthy step: the trainer with everything of `conf/stability` on, against it off."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from engine.config import Config, StabilityConfig
from engine.device import Device
from engine.stop_request import StopRequest
from engine.trainer import Trainer
from tests.bench.pairs import Pairs, Plan, measure
from tests.bench.sizes import Sizes
from tests.bench.training import Layout
from tests.layouts import make_config

BLOCK = 25  # steps between the states that are kept in memory: each block pays for one
BLOCKS_PER_DRIFT = 4  # copies of weights are compared every 100 steps


def watched(rank: int, world: int, layout: Layout, sizes: Sizes, plan: Plan) -> Pairs:
    """Body of a rank: blocks of steps with everything off ("theirs") and on ("ours"), in turn.

    The ratio is off / on: 0.99 where being watched costs 1%.
    """
    torch.set_num_threads(layout.threads)
    with tempfile.TemporaryDirectory() as name, StopRequest() as stop:
        sides = [_side(Path(name), str(watch), layout, sizes, plan, watch) for watch in (True, False)]
        loaders = [trainer._loader() for trainer in sides]

        def block(side: int) -> None:
            trainer = sides[side]
            assert not trainer._train_until_turned_back(loaders[side], stop, trainer.states.step + BLOCK)

        try:
            whole = Plan(plan.warmup * BLOCKS_PER_DRIFT, plan.pairs, BLOCKS_PER_DRIFT)
            return measure(lambda: block(0), lambda: block(1), whole, torch.distributed.barrier)
        finally:
            for loader, trainer in zip(loaders, sides, strict=True):
                loader.close()
                trainer.close()


def _side(folder: Path, name: str, layout: Layout, sizes: Sizes, plan: Plan, watch: bool) -> Trainer:
    blocks = (plan.warmup + plan.pairs) * BLOCKS_PER_DRIFT
    groups: dict[str, dict[str, Any]] = {
        "model": {"layers": 4, "hidden": sizes.hidden // 2, "heads": 4, "kv_heads": 4, "ffn": sizes.hidden,
                  "init_std": 0.02},
        "data": {"cache_dir": str(folder / "data"), "tokenizer_vocab": 1024, "workers": 1, "seq_len": sizes.seq // 4},
        "optim": {"lr": 1e-3, "min_lr": 1e-3, "schedule": "constant", "warmup_steps": 20, "clip": 1.0},
        "precision": {"dtype": "fp32"}, "ops": {"head_block_mb": None},
        "parallel": {**layout.parallel, "bucket_mb": 25.0},
        "train": {"steps": blocks * BLOCK + 1, "global_batch": 8, "micro_batch": 4, "eval_interval": 0},
        "checkpoint": {"interval": 0}, "monitor": {"console": "off"}, "run": {"root": str(folder), "name": name},
        "stability": vars(StabilityConfig(watch=watch)),
    }  # fmt: skip
    config: Config = make_config(**groups)
    trainer = Trainer(config, Device(torch.device("cpu"), "gloo"))
    trainer.start()
    trainer.monitor.begin(0, config.train.steps)
    return trainer
