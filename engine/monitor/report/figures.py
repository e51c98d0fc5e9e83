"""What came of a run, in figures: where it is, its results, and where the time of a step goes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from engine.monitor.profile.summary import read_summary
from engine.monitor.report.html import Html, bar, card, duration, fixed, missing, number, table, tag
from engine.monitor.report.read import Run
from engine.stability.actions import ROLLBACK, STOP

_SHOWN_RANKS = 16


@dataclass(frozen=True)
class Results:
    """None stands for what is not recorded; times are seconds, `lost` those of steps that were rolled back."""

    loss: float | None  # mean of the last 20 steps
    valid: float | None  # the last one
    best: float | None
    best_step: int
    tokens: float | None
    tokens_per_s: float | None  # median
    mfu_percent: float | None  # median
    tflops: float | None  # median, per rank
    useful: float
    lost: float
    rollbacks: int
    skipped: int


def results(run: Run) -> Results:
    """Return the key figures of a run."""
    steps, every = run.steps, (run.steps, *run.abandoned)
    valid = [
        (record["valid_loss"], record["step"]) for record in run.validations if record.get("valid_loss") is not None
    ]
    best, best_step = min(valid, default=(None, 0))
    decided = [entry.action.kind for entry in run.ledger if entry.action is not None]
    seconds = [float(np.nansum(table.values("step_time_s"))) for table in every]
    return Results(
        loss=_last_mean(steps.values("loss")), valid=valid[-1][0] if valid else None, best=best, best_step=best_step,
        tokens=float(steps.values("consumed_tokens")[-1]) if len(steps) else None,
        tokens_per_s=_median(steps.values("tokens_per_s")), mfu_percent=_median(steps.values("mfu_percent")),
        tflops=_median(steps.values("tflops_per_device")), useful=seconds[0], lost=sum(seconds[1:]),
        rollbacks=decided.count(ROLLBACK), skipped=int(sum((table.values("skipped") > 0).sum() for table in every)),
    )  # fmt: skip


def status(run: Run) -> tuple[str, str]:
    """Return a word for where the run is, and its class on the page: good | bad | open."""
    total = int(run.number("train.steps") or 0)
    last = run.ledger[-1].action if run.ledger else None
    if last is not None and last.kind == STOP:
        return f"stopped itself at step {run.step:,}", "bad"
    if total and run.step >= total:
        return f"finished {total:,} steps", "good"
    return f"step {run.step:,}" + (f" of {total:,}" if total else ""), "open"


def tiles(run: Run) -> Html:
    """Return the key figures as a row of tiles."""
    found = results(run)
    best = "none recorded" if found.best is None else f"best {fixed(found.best)} at step {found.best_step:,}"
    lost = f"and {duration(found.lost)} on abandoned branches" if found.lost else "no step was trained in vain"
    updates = "update" if found.skipped == 1 else "updates"
    return tag("div", *(
        _tile("training loss", fixed(found.loss), "mean of the last 20 steps"),
        _tile("validation loss", fixed(found.valid), best),
        _tile("tokens", number(found.tokens, 3), f"of {number(_planned_tokens(run), 3)} planned"),
        _tile("tokens/s", number(found.tokens_per_s, 3), f"median; {_speed(found)}"),
        _tile("time in steps", duration(found.useful), lost),
        _tile("rollbacks", str(found.rollbacks), f"{found.skipped:,} {updates} skipped"),
    ), class_="tiles")  # fmt: skip


def _tile(name: str, value: str, note: str) -> Html:
    return tag("div", tag("span", name), tag("b", value), tag("small", note), class_="tile")


def _planned_tokens(run: Run) -> float | None:
    sizes = [run.number(key) for key in ("train.steps", "train.global_batch", "data.seq_len")]
    known = [size for size in sizes if size is not None]
    return None if len(known) < len(sizes) or run.setting("train.ramp") else math.prod(known)


def _speed(found: Results) -> str:
    if found.mfu_percent is not None:
        return f"MFU {found.mfu_percent:.1f}%"
    return "no MFU" if found.tflops is None else f"{number(found.tflops * 1e12, 3)}FLOP/s per rank"


def _median(values: np.ndarray) -> float | None:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else None


def _last_mean(values: np.ndarray) -> float | None:
    tail = values[-20:][np.isfinite(values[-20:])]
    return float(tail.mean()) if len(tail) else None


def step_time(run: Run) -> Html:
    """Return where the time of a step goes: medians of the parts that are recorded."""
    title, whole = "Step-time breakdown", _median(run.steps.values("step_time_s"))
    if not whole:
        return card(title, missing("no step time is recorded"), name="step-time")
    parts = [
        (key.removesuffix("_time_s").replace("_", " "), _median(run.steps.values(key)))
        for key in run.steps.columns
        if key.endswith("_time_s") and key != "step_time_s"
    ]
    shares = [(name, seconds) for name, seconds in parts if seconds is not None]
    rest = max(0.0, whole - sum(seconds for _, seconds in shares))
    shares.append(("everything else", rest))
    hint = f"median step {duration(whole)}{_stalls(run)}"
    return card(title, bar([(name, value, duration(value)) for name, value in shares]), hint=hint, name="step-time")


def profiled(run: Run) -> Html:
    """Return what a profile found the time of its steps to go to; nothing where none was made."""
    title = "Profile"
    try:
        found = read_summary(run.path)
    except (OSError, ValueError, TypeError, LookupError) as error:
        return card(title, missing(f"the summary cannot be read: {error!r}"), name="profile")
    if found is None:
        return Html("")
    parts = [(name, share, f"{100 * share:.1f}%") for name, share in found.shares().items()]
    rows = [
        (rank, *(duration(value) for value in mine.values()), duration(whole))
        for rank, (mine, whole) in enumerate(zip(found.parts[:_SHOWN_RANKS], found.seconds, strict=False))
    ]
    ranks = table(["rank", *found.parts[0], "in all"], rows, numbers=range(len(found.parts[0]) + 2))
    more = f", the first {_SHOWN_RANKS} ranks below" if len(found.parts) > _SHOWN_RANKS else ""
    hint = f"steps {found.first:,} to {found.last:,}, all ranks; communication counts where it is exposed{more}"
    return card(title, bar(parts), ranks, hint=hint, name="profile")


def _stalls(run: Run) -> str:
    stalls = sum(float(record.get("checkpoint_stall_s") or 0.0) for record in run.checkpoints)
    total = float(np.nansum(run.steps.values("step_time_s")))
    if not run.checkpoints or not total:
        return ""
    return f"; checkpoints made training wait for {duration(stalls)}, {100 * stalls / total:.2f}% of all steps' time"
