"""Run folders as a long run leaves them: curves with noise, a spike that was rolled back, a ledger, restarts."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import Config
from engine.stability.actions import LOWER, ROLLBACK, Action
from engine.stability.ledger import COMMIT, INTENT, NOTE, Ledger
from engine.stability.signals import Verdict
from tests.monitor.records import step_values


def config(steps: int, **changes: Any) -> dict[str, Any]:
    """A configuration as starts.jsonl holds it; `changes` are of its sections, as in parallel={"pp": 4}."""
    plain = dataclasses.asdict(Config())
    plain["train"].update(steps=steps, global_batch=16, micro_batch=1)
    for section, values in changes.items():
        plain[section].update(values)
    return plain


def records(first: int, last: int, rng: np.random.Generator, spike: int = 0) -> list[dict[str, Any]]:
    """Records of steps first to last; from step `spike` on, if any, the loss climbs and the norm explodes."""
    rows = []
    for step in range(first, last + 1):
        bad = max(0, step - spike + 1) if spike else 0
        loss = (
            2.1 + 8 * math.exp(-step / 400) + 4 / math.sqrt(step + 9) + 0.05 * rng.standard_normal() + 0.9 * min(bad, 6)
        )
        warm = min(1.0, step / 500)
        rows.append({"step": step, **step_values(
            loss=loss, grad_norm=float(math.exp(0.3 * rng.standard_normal() - 0.5 + 0.8 * min(bad, 5))),
            lr=3e-4 * warm * (0.55 + 0.45 * math.cos(math.pi * step / 1e5)), skipped=int(bad > 1 or rng.random() < 2e-4),
            consumed_samples=16 * step, consumed_tokens=16 * 256 * step, step_time_s=0.4 + 0.02 * rng.random() + 0.5 * (rng.random() < 0.002),
            data_time_s=0.004 + 0.002 * rng.random(), tokens_per_s=9800 + 300 * rng.standard_normal(), mfu_percent=41 + rng.standard_normal(),
            memory_gib=61.5 + 0.5 * (step > last // 3),
        )})  # fmt: skip
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_folder(folder: Path, steps: int, settings: dict[str, Any] | None = None, seed: int = 1) -> Path:
    """Write a run of `steps` steps that spiked at 45% and at 70% and was rolled back both times."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append(NOTE, {"note": "watching with the default policy"})
    at = 0
    for share, kind in ((0.45, ROLLBACK), (0.7, ROLLBACK)):
        onset = int(steps * share)
        end, to = onset + max(4, steps // 60), onset - max(10, steps // 25)
        rows += records(at + 1, end, rng, spike=onset)
        action = Action(kind, end - 1, "spike", "loss 0.9 nats above normal, gradient norm 8 times normal", onset - 1, to,
                        16 * (onset - 5), 16 * (end + 20), lr_factor=0.5 if share > 0.5 else 1.0)  # fmt: skip
        intent = ledger.append(
            INTENT, {"action": action.to_plain(), "verdict": Verdict("rollback", "spike", onset - 1).to_plain()}
        )
        ledger.append(COMMIT, {"intent": intent.seq})
        at = to
    rows += records(at + 1, steps, rng)
    action = Action(
        LOWER,
        int(steps * 0.85),
        "slow",
        "the smoothed loss is 0.3 nats above its best",
        int(steps * 0.8),
        lr_factor=0.5,
    )
    ledger.append(
        INTENT, {"action": action.to_plain(), "verdict": Verdict("rollback", "slow", action.onset).to_plain()}
    )
    ledger.close()
    every = max(1, steps // 25)
    marked = [row for row in rows if row["step"] % every == 0]
    for row in marked:
        place = rows.index(row) + 1
        rows.insert(
            place, {"step": row["step"], "valid_loss": row["loss"] + 0.06, "valid_perplexity": math.exp(row["loss"])}
        )
        rows.insert(
            place, {"step": row["step"], "checkpoint_save_s": 9.3, "checkpoint_stall_s": 0.21, "checkpoint_bytes": 98e9}
        )
    write(folder / "metrics.jsonl", rows)
    plain = settings or config(steps, parallel={"pp": 4, "dp": 1, "tp": 2}, model={"layers": 16},
                               data={"paths": [[0.6, "web/*.jsonl"], [0.25, "code"], [0.15, "books/*.txt"]]})  # fmt: skip
    machine = {"trimaran": "0.1", "code": "7ebb0b7", "torch": "2.13.0", "device": "NVIDIA H100", "host": "node1"}
    write(folder / "starts.jsonl", [
        {"step": step, "time": 1.79e9 + step, "ranks": 8, "environment": machine, "config": plain} for step in (0, steps // 3)
    ])  # fmt: skip
    return folder
