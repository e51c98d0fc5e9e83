"""The one place the trainer tells what happens; it passes each record to every sink."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from engine.checkpoint.writer import SaveResult
from engine.config import Config
from engine.errors import printable
from engine.monitor.console import make_console
from engine.monitor.jsonl import JsonlSink
from engine.monitor.metrics import Record
from engine.monitor.wandb_sink import WandbSink


class Sink(Protocol):
    """Somewhere records go. `begin` comes once, before the first record."""

    def begin(self, step: int, total: int) -> None: ...

    def log(self, record: Record) -> None: ...

    def event(self, text: str) -> None: ...

    def close(self) -> None: ...


class Monitor:
    """Console, metrics.jsonl in `folder` and wandb, as `config.monitor` says; on ranks that don't write, nothing."""

    def __init__(self, config: Config, folder: Path, *, is_writer: bool) -> None:
        self._sinks: list[Sink] = []
        self._warned = False
        if is_writer:
            self._sinks = _make_sinks(config, folder, self.event)

    def begin(self, step: int, total: int) -> None:
        """Start after `step` steps of `total`; records of later steps from an earlier attempt are forgotten."""
        for sink in self._sinks:
            sink.begin(step, total)

    def log(self, step: int, values: Record) -> None:
        """Send one record, keyed as in `engine.monitor.metrics`; `step` counts the steps made so far."""
        record: Record = {"step": step, **values}
        for sink in self._sinks:
            try:
                sink.log(record)
            except OSError as error:  # a full disk must not stop the training
                if not self._warned:
                    self._warned = True
                    self.event(f"metrics are being lost: {error}")

    def log_validation(self, step: int, loss: float) -> None:
        """Record a validation: its mean loss, and the perplexity that follows."""
        perplexity = math.exp(loss) if loss < 700 else math.inf
        self.log(step, {"valid_loss": loss, "valid_perplexity": perplexity})

    def saved(self, result: SaveResult) -> None:
        """Record a checkpoint that is whole on disk; tell what went wrong with it, or with pruning after it."""
        if result.ok:
            self.log(
                result.step,
                {
                    "checkpoint_save_s": result.seconds,
                    "checkpoint_stall_s": result.stall_s,
                    "checkpoint_bytes": result.bytes,
                },
            )
            if result.error is not None:
                self.event(f"checkpoint of step {result.step}: {result.error}")
        else:
            self.event(
                f"step {result.step} was NOT saved: {result.error}; training goes on, and the checkpoint before it "
                "stays"
            )

    def event(self, text: str) -> None:
        """Show a one-line notice."""
        for sink in self._sinks:
            with contextlib.suppress(OSError, ValueError):  # a log that is full, a pipe whose reader left
                sink.event(printable(text))

    def close(self) -> None:
        for sink in self._sinks:
            with contextlib.suppress(OSError, ValueError):
                sink.close()


def _make_sinks(config: Config, folder: Path, notify: Callable[[str], None]) -> list[Sink]:
    settings = config.monitor
    console = make_console(settings.console, config.train.log_interval)
    sinks: list[Sink] = [] if console is None else [console]
    sinks.append(JsonlSink(folder / "metrics.jsonl"))
    if settings.wandb != "off":
        about = dataclasses.asdict(config)
        sinks.append(WandbSink(settings.wandb, settings.wandb_project, folder, about, notify))
    return sinks
