"""Real spikes, with and without the ladder, on every kind of layout: `python -m tests.soak.spikes [--only WORDS]`.

Each trouble strikes late in a run on the built-in corpus. Compared are the validation losses of the clean run, of the
run under the default policy, and of the same run with `stability=off`. With `--keep FOLDER` the run folders stay, and
with them a report for each trouble.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from engine.config import Config, StabilityConfig
from engine.errors import EngineError
from engine.stability.ledger import read_ledger
from launch.report import main as report
from tests.bench.table import Row, machine, show, to_markdown
from tests.ranks import run_ranks
from tests.system.runs import metrics
from tests.voyages import decided, settings, train_here

STEPS, ONSET, BATCH = 300, 240, 8
WITHIN = 0.01
LAYOUTS: dict[str, tuple[dict[str, Any], int]] = {
    "tp": ({"tp": 2, "sequence_parallel": True}, 2),
    "pp": ({"pp": 2}, 2),
    "dp, ZeRO-1": ({"dp": 2}, 2),
    "interleaved": ({"pp": 2, "schedule": "interleaved", "virtual_stages": 2}, 2),
    "tp x pp": ({"tp": 2, "pp": 2}, 4),
}


@dataclass(frozen=True)
class Trouble:
    """What goes wrong, and how precise the run is."""

    faults: tuple[dict[str, Any], ...]
    dtype: str = "fp32"


POISONED = {"what": "poison", "first": (ONSET - 1) * BATCH, "stop": (ONSET + 11) * BATCH}
FLIPPED = {"rank": 1, "step": ONSET, "bit": 30, "element": 1000}
TROUBLES = {
    "poisoned documents": Trouble(({**POISONED, "how": "random"},)),
    "a rate 100 times too high for 4 steps": Trouble(({"what": "rate", "step": ONSET, "steps": 4, "factor": 100.0},)),
    "a corrupted gradient": Trouble(({**FLIPPED, "what": "flip_grad"},)),
    "a bit flipped in a weight": Trouble(({**FLIPPED, "what": "flip_master"},)),
    "overflows of fp16": Trouble(
        ({"what": "rate", "step": ONSET, "steps": 4, "factor": 1000.0},), dtype="fp16"
    ),
}  # fmt: skip


def gives_up(rank: int, world: int, config: Config) -> bool:
    """Be a rank of the run; say whether the engine stopped it before its end."""
    try:
        train_here(rank, world, config)
    except EngineError:
        return True
    return False


def train(folder: Path, name: str, layout: str, dtype: str, faults: tuple[dict[str, Any], ...], watch: bool) -> float:
    """Train one run; return its last validation loss, infinite where that is no number or the run gave up."""
    parallel, world = LAYOUTS[layout]
    config = settings(
        folder, name, model={"layers": 4, "hidden": 64, "ffn": 176, "hidden_dropout": 0.0, "init_std": 0.02},
        data={"paths": [], "tokenizer_vocab": 512, "seq_len": 64, "split": [969, 30, 1]},
        parallel={"bucket_mb": 25.0, **parallel}, ops={"head_block_mb": None},
        optim={"schedule": "constant", "warmup_steps": 20}, precision={"dtype": dtype},
        train={"steps": STEPS, "global_batch": BATCH, "micro_batch": 2, "eval_samples": 256},
        checkpoint={"interval": 100}, stability=vars(StabilityConfig(watch=watch)),
    )  # fmt: skip
    config.faults = [dict(fault) for fault in faults]
    if any(run_ranks(world, gives_up, config, timeout=1800)):
        return math.inf
    loss = [row["valid_loss"] for row in metrics(folder, name) if "valid_loss" in row][-1]
    return math.inf if loss is None else float(loss)


def what_was_done(folder: Path, name: str) -> str:
    """Say in a few words what a run did about its trouble."""
    rows = [row for row in metrics(folder, name) if "loss" in row]
    skipped = sum(row["skipped"] for row in rows)
    actions = [action.kind for action in decided(folder, name)]
    redone = sum("fault" in record.body for record in read_ledger(folder / name / "ledger.jsonl")[0].records)
    done = [f"{actions.count(kind)} x {kind}" for kind in dict.fromkeys(actions)]
    done += [f"{skipped} updates not made"] if skipped else []
    done += [f"{redone} steps computed again, rank named"] if redone else []
    return ", ".join(done) or "nothing"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="troubles whose title holds this")
    parser.add_argument("--layout", default="", help="layouts whose name holds this")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    title = f"validation loss after {STEPS} steps, trouble at step {ONSET}, on {machine()}"
    columns = ("trouble", "layout", "clean", "with the ladder", "off by", "without", "what the ladder did")
    rows, missed = [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        clean: dict[tuple[str, str], float] = {}
        for number, (what, trouble) in enumerate(TROUBLES.items()):
            for place, layout in enumerate(LAYOUTS):
                if options.only not in what or options.layout not in layout:
                    continue
                dtype = trouble.dtype
                if (layout, dtype) not in clean:
                    clean[layout, dtype] = train(folder, f"clean-{place}-{dtype}", layout, dtype, (), True)
                names = [f"{mode}-{number}-{place}" for mode in ("with", "without")]
                good, bad = (train(folder, run, layout, dtype, trouble.faults, run == names[0]) for run in names)
                off = good / clean[layout, dtype] - 1.0
                missed += not (off <= WITHIN and good < bad)
                rows.append(
                    Row(what, layout, f"{clean[layout, dtype]:.4f}", f"{good:.4f}", f"{100 * off:+.2f}%",
                        f"{bad:.4f}", what_was_done(folder, names[0]))
                )  # fmt: skip
                print(" | ".join(rows[-1].cells), flush=True)
                if options.keep:
                    runs = [str(folder / run) for run in (*names, f"clean-{place}-{dtype}")]
                    report([*runs, f"output={folder / f'spike-{number}-{place}.html'}"])
    show(title, columns, rows, Console(width=160))
    if options.markdown:
        options.markdown.write_text(to_markdown(title, columns, rows))
    print(f"{len(rows)} cases, {missed} of them off by more than {WITHIN:.0%} or no better than without the ladder")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
