"""Do objectives teach anything? Tiny models on the built-in text: `python -m tests.soak.objectives [--only WORDS]`.

Each run's validation loss, under its own objective, is held to that of its beginning, and to what guessing by the
frequency of tokens would give.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console

from engine.config import Config
from engine.data.build import build_data
from tests.bench.table import Row, machine, show, to_markdown
from tests.objectives.test_settings import chosen
from tests.objectives.test_training import train_all
from tests.ranks import run_ranks
from tests.system.runs import metrics
from tests.voyages import settings

COLUMNS = ("objective", "loss at each quarter", "guessing by frequency", "time")
STEPS, CHOICES = 400, ("ul2", "glm-2d", "glm", "span_corruption", "masked", "fim")


def config_of(folder: Path, choice: str, steps: int) -> Config:
    """Return the configuration of a model of 4 layers of 64 on the built-in corpus, split over two ranks."""
    return settings(
        folder, choice, objective=vars(chosen(choice)),
        model={"layers": 4, "hidden": 64, "ffn": 176, "hidden_dropout": 0.0, "init_std": 0.02, "max_positions": 128,
               "positions": "learned_2d" if choice == "glm-2d" else "rope"},
        data={"paths": [], "tokenizer_vocab": 512, "seq_len": 128, "split": [969, 30, 1], "cache_dir": str(folder)},
        parallel={"tp": 2, "sequence_parallel": True, "bucket_mb": 25.0}, ops={"head_block_mb": None},
        optim={"schedule": "cosine", "min_lr": 3e-4, "warmup_steps": 20},
        train={"steps": steps, "global_batch": 16, "micro_batch": 4, "eval_interval": max(1, steps // 4),
               "eval_samples": 128},
        checkpoint={"interval": 0}, stability={"watch": False},
    )  # fmt: skip


def guessing(config: Config) -> float:
    """Return the loss of guessing each label by how often it occurs among the labels of the validation."""
    data = build_data(
        config.data, config.objective, config.train.seed, None, config.model.vocab_multiple, is_writer=False,
        barrier=lambda: None,
    )  # fmt: skip
    assert data.valid is not None
    counts: Counter[int] = Counter()
    for index in range(config.train.eval_samples):
        micro = data.collate([data.valid[index]], [0])
        labels = micro.labels_bs if micro.loss_mask_bs is None else micro.labels_bs[micro.loss_mask_bs > 0]
        counts.update(labels.flatten().tolist())
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(CHOICES), help="files of conf/objective/")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    title = f"validation loss over {options.steps} steps, on {machine()}"
    rows, missed = [], 0
    with tempfile.TemporaryDirectory() as name:
        for choice in options.only:
            config, begin = config_of(Path(name), choice, options.steps), time.perf_counter()
            run_ranks(2, train_all, [(config, None)], timeout=3600)
            losses = [row["valid_loss"] for row in metrics(Path(name), choice) if "valid_loss" in row]
            guess = guessing(config)
            missed += not losses[-1] < min(guess, losses[0])
            curve = ", ".join(f"{loss:.3f}" for loss in losses)
            rows.append(Row(choice, curve, f"{guess:.3f}", f"{time.perf_counter() - begin:.0f} s"))
            print(" | ".join(rows[-1].cells), flush=True)
    show(title, COLUMNS, rows, Console(width=120))
    if options.markdown:
        options.markdown.write_text(to_markdown(title, COLUMNS, rows))
    print(f"{len(rows)} objectives, {missed} of them no better in the end than guessing")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
