"""False alarms: clean runs of the engine itself, none of which may be rolled back: `python -m tests.soak.alarms`.

Sizes, seeds, schedules (warm-up, restarts, batch ramp), precisions; 600 steps each on the built-in corpus, under the
default policy. With `--runs N` only the first N.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from engine.config import StabilityConfig
from engine.stability.actions import ROLLBACK
from tests.bench.table import Row, machine, show, to_markdown
from tests.ranks import run_ranks
from tests.system.runs import metrics
from tests.voyages import decided, settings, train_here

STEPS = 600
SIZES: dict[str, dict[str, Any]] = {
    "2 x 32": {"layers": 2, "hidden": 32, "ffn": 96},
    "2 x 64": {"layers": 2, "hidden": 64, "ffn": 176},
    "4 x 96": {"layers": 4, "hidden": 96, "ffn": 256},
}
SCHEDULES: dict[str, dict[str, dict[str, Any]]] = {
    "cosine": {"optim": {"schedule": "cosine", "min_lr": 3e-4, "warmup_steps": 30}},
    "constant, no warm-up": {"optim": {"schedule": "constant"}},
    "wsd": {"optim": {"schedule": "wsd", "min_lr": 3e-4, "warmup_steps": 60}},
    "inverse sqrt": {"optim": {"schedule": "inverse_sqrt", "min_lr": 1e-4, "warmup_steps": 100}},
    "restarts": {"optim": {"schedule": "cosine", "min_lr": 3e-4, "warmup_steps": 20, "restart_steps": 200}},
    "batch ramp": {"optim": {"schedule": "cosine", "min_lr": 3e-4, "warmup_steps": 30},
                   "train": {"ramp": [2, 2, 1800]}},
    "hot": {"optim": {"schedule": "cosine", "lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 30}},
}  # fmt: skip
PRECISIONS = ("fp32", "bf16", "fp16")


def runs() -> Iterator[tuple[str, str, str, int, dict[str, dict[str, Any]]]]:
    """Yield (size, schedule, precision, seed, groups of the configuration): 42 runs."""
    for seed, (size, schedule) in enumerate(itertools.product(SIZES, SCHEDULES), start=1):
        for number in range(2):
            precision = PRECISIONS[(2 * seed + number) % 3]
            yield size, schedule, precision, 10 * seed + number, SCHEDULES[schedule]


def sail(folder: Path, number: int, run: tuple[str, str, str, int, dict[str, dict[str, Any]]]) -> Row:
    """Train one run; return its row, whose last cells are skips and rollbacks."""
    size, schedule, precision, seed, groups = run
    config = settings(
        folder, f"run{number}", model={**SIZES[size], "hidden_dropout": 0.0, "init_std": 0.02},
        data={"paths": [], "tokenizer_vocab": 512, "seq_len": 64, "split": [969, 30, 1]},
        optim={"lr": 3e-3, "min_lr": 3e-4, **groups["optim"]}, precision={"dtype": precision},
        train={"steps": STEPS, "global_batch": 8, "micro_batch": 2, "seed": seed, **groups.get("train", {})},
        checkpoint={"interval": 0}, stability=vars(StabilityConfig()), parallel={"bucket_mb": 25.0},
        ops={"head_block_mb": None},
    )  # fmt: skip
    run_ranks(1, train_here, config, timeout=1800)
    actions = decided(folder, f"run{number}")
    rows = [row for row in metrics(folder, f"run{number}") if "loss" in row]
    skipped = sum(row["skipped"] for row in rows)
    rolled_back = sum(action.kind == ROLLBACK for action in actions)
    return Row(size, schedule, precision, str(seed), f"{rows[0]['loss']:.2f}", f"{rows[-1]['loss']:.2f}",
               str(skipped), str(rolled_back))  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=None)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    title = f"clean runs of {STEPS} steps on {machine()}"
    columns = ("layers x width", "schedule", "precision", "seed", "first loss", "last loss", "updates skipped",
               "rollbacks")  # fmt: skip
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)
        chosen = list(runs())[: options.runs]
        first = sail(folder, 0, chosen[0])  # alone: it makes the tokenizer and the index
        rest = pool.map(lambda item: sail(folder, *item), enumerate(chosen[1:], start=1))
        rows = [first, *rest]
    show(title, columns, rows, Console(width=140))
    if options.markdown:
        options.markdown.write_text(to_markdown(title, columns, rows))
    rolled_back = sum(int(row.cells[-1]) for row in rows)
    print(f"{len(rows)} runs, {rolled_back} rollbacks")
    return int(rolled_back > 0)


if __name__ == "__main__":
    sys.exit(main())
