"""Run folders as a long run leaves them: noisy curves, spikes that were rolled back, a ledger, a restart."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import Config
from engine.monitor.profile.summary import Summary
from engine.stability.actions import LOWER, ROLLBACK, Action
from engine.stability.ledger import COMMIT, INTENT, Ledger
from engine.stability.signals import Verdict
from tests.monitor.records import step_values

MIXTURE = [[0.6, "web/*.jsonl"], [0.25, "code"], [0.15, "books/*.txt"]]
MACHINE = {"trimaran": "0.1", "code": "7ebb0b7", "torch": "2.13.0", "device": "NVIDIA H100", "host": "node1"}


def config(steps: int, **changes: Any) -> dict[str, Any]:
    """A configuration as starts.jsonl holds it; `changes` are of its sections, as in parallel={"pp": 4}."""
    plain = dataclasses.asdict(Config())
    plain["train"].update(steps=steps, global_batch=16, micro_batch=1)
    for section, values in changes.items():
        plain[section].update(values)
    return plain


def records(first: int, last: int, rng: np.random.Generator, spike: int | None = None) -> list[dict[str, Any]]:
    """Records of steps first to last; from step `spike` on the loss climbs, and updates are skipped."""
    rows = []
    for step in range(first, last + 1):
        bad = 0 if spike is None else max(0, step - spike + 1)
        noise, slow = rng.standard_normal(4).tolist(), rng.random() < 0.002
        values = step_values(
            loss=2.1 + 8 * math.exp(-step / 400) + 0.05 * noise[0] + 0.9 * min(bad, 6),
            grad_norm=math.exp(0.3 * noise[1] - 0.5 + 0.8 * min(bad, 5)), lr=3e-4 * min(1.0, step / 500),
            skipped=int(bad > 1), consumed_samples=16 * step, consumed_tokens=4096 * step,
            step_time_s=0.42 + 0.5 * slow, data_time_s=0.004, compute_time_s=0.3, communication_time_s=0.02,
            bubble_time_s=0.06, optimizer_time_s=0.02, param_norm=180 + step / 50, tokens_per_s=9800 + 300 * noise[2],
            mfu_percent=41 + noise[3], memory_gib=61.5,
        )  # fmt: skip
        rows.append({"step": step, **values})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def decide(ledger: Ledger, action: Action, *, commit: bool = True) -> None:
    """Append an action as the trainer does."""
    verdict = Verdict("rollback", action.cause, action.onset)
    intent = ledger.append(INTENT, {"action": action.to_plain(), "verdict": verdict.to_plain()})
    if commit:
        ledger.append(COMMIT, {"intent": intent.seq})


def run_folder(folder: Path, steps: int, settings: dict[str, Any] | None = None, seed: int = 1) -> Path:
    """Write a run of `steps` steps, at least 100, that spiked at 45% and at 70% and was rolled back both times."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    ledger = Ledger(folder / "ledger.jsonl")
    at = 0
    for onset in (steps * 45 // 100, steps * 70 // 100):
        end, to = onset + max(4, steps // 60), onset - max(10, steps // 25)
        rows += records(at + 1, end, rng, spike=onset)
        why = "loss 0.9 nats above normal"
        decide(ledger, Action(ROLLBACK, end - 1, "spike", why, onset - 1, to, 16 * (onset - 5), 16 * (end + 20)))
        at = to
    rows += records(at + 1, steps, rng)
    why = "the smoothed loss is 0.3 nats above its best"
    lower = Action(LOWER, steps * 85 // 100, "slow", why, steps * 80 // 100, lr_factor=0.5)
    decide(ledger, lower, commit=False)
    ledger.close()
    write(folder / "metrics.jsonl", [extra for row in rows for extra in (row, *_after(row, max(1, steps // 25)))])
    plain = settings or config(steps, parallel={"pp": 4, "dp": 1, "tp": 2}, model={"layers": 16},
                               data={"paths": MIXTURE})  # fmt: skip
    (folder / "profile").mkdir()
    parts = {"compute": 0.6, "communication": 0.05, "bubble": 0.1, "optimizer": 0.04, "data": 0.01}
    Summary(10, 11, [0.84] * 8, [parts] * 8).write(folder)
    known = {"ranks": 8, "environment": MACHINE, "config": plain}
    write(folder / "starts.jsonl", [{"step": step, "time": 1.79e9 + step, **known} for step in (0, steps // 3)])
    return folder


def _after(row: dict[str, Any], every: int) -> list[dict[str, Any]]:
    """Return the records of a checkpoint and a validation where they are due."""
    if row["step"] % every:
        return []
    loss = row["loss"] + 0.06
    return [
        {"step": row["step"], "checkpoint_save_s": 9.3, "checkpoint_stall_s": 0.21, "checkpoint_bytes": 98e9},
        {"step": row["step"], "valid_loss": loss, "valid_perplexity": math.exp(loss)},
    ]
