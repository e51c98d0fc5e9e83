"""The one place the trainer tells what happens; it passes each record to every sink."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from engine.checkpoint.writer import SaveResult
from engine.config import Config
from engine.device import Device, local_rank
from engine.errors import printable
from engine.monitor import attempts
from engine.monitor.console import make_console
from engine.monitor.goodput import Account
from engine.monitor.jsonl import JsonlSink
from engine.monitor.metrics import INFO, WARN, Record, set_key
from engine.monitor.nvml import Nvml
from engine.monitor.starts import StartsSink, environment
from engine.monitor.tensorboard_sink import TensorboardSink
from engine.monitor.wandb_sink import WandbSink


class Sink(Protocol):
    """Somewhere records go. `begin` comes once, before the first record."""

    def begin(self, step: int, total: int, timeline: int = 0) -> None: ...

    def log(self, record: Record) -> None: ...

    def event(self, text: str, level: str = INFO) -> None: ...

    def close(self) -> None: ...


class Monitor:
    """Console, metrics.jsonl in `folder` and wandb, as `config.monitor` says; on ranks that don't write, nothing."""

    def __init__(self, config: Config, folder: Path, *, is_writer: bool) -> None:
        self._sinks: list[Sink] = []
        self._warned = False
        self.timeline = 0  # rollbacks so far
        self._alerts = 0
        self._nvml: Nvml | None = None
        self._folder, self._account, self._accounted = folder, Account(), 0
        if is_writer:
            self._nvml = Nvml(Device.pick(config.run.device, local_rank()))
            self._sinks = _make_sinks(config, folder, self.event)

    def begin(self, step: int, total: int, timeline: int = 0, born: float | None = None) -> None:
        """Start after `step` steps of `total`; what an earlier attempt logged of later ones is forgotten.

        Records of steps that a rollback took back are of an earlier timeline, and stay. `born` is when this process
        began, in seconds since 1970; None: just now.
        """
        self.timeline = timeline
        if self._sinks:
            attempts.note(self._folder, "start", time=born or time.time())
            attempts.begin(self._folder, step, timeline)
        for sink in self._sinks:
            sink.begin(step, total, timeline)
        self._read_account()

    def _read_account(self) -> None:
        if self._sinks:
            self._account, self._accounted = attempts.read_account(self._folder), self.timeline

    def end(self, step: int) -> None:
        """Note that the training came to its end, or to where it was asked to stop, and say where the time went."""
        if self._sinks:
            attempts.note(self._folder, "end", step=step)
            self.event(attempts.read_account(self._folder).describe())

    def log(self, step: int, values: Record) -> None:
        """Send one record, keyed as in `engine.monitor.metrics`; `step` counts the steps made so far."""
        record: Record = {"step": step, "timeline": self.timeline, **values}
        if self._nvml is not None and "loss" in values:
            record.update(self._nvml.readings())
        self._account.add(record)
        if "loss" in record:
            self._account.until = time.time()
            record["goodput"], record["alerts"] = self._account.goodput, self._alerts
        for sink in self._sinks:
            try:
                sink.log(record)
            except OSError as error:  # a full disk must not stop the training
                if not self._warned:
                    self._warned = True
                    self.event(f"metrics are being lost: {error}")
        if self._accounted != self.timeline:  # a rollback took back steps that had counted
            self._read_account()

    def log_validation(
        self, step: int, loss: float | None, seconds: float, sets: Mapping[str, Mapping[str, float]] | None = None
    ) -> None:
        """Record a validation: its mean loss (None: no such part), the perplexity that follows, the time it took.

        `sets` are the metrics of each set of data.valid, by their names.
        """
        record: Record = {}
        if loss is not None:
            record |= {"valid_loss": loss, "valid_perplexity": math.exp(loss) if loss < 700 else math.inf}
        for name, metrics in (sets or {}).items():
            record |= {set_key(name, metric): value for metric, value in metrics.items()}
        self.log(step, {**record, "valid_time_s": seconds})

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
                "stays",
                WARN,
            )

    def event(self, text: str, level: str = INFO) -> None:
        """Show a one-line notice. Of level WARN (the run helps itself) or ERROR (it stops) it is also an alert."""
        self._alerts += level != INFO
        for sink in self._sinks:
            with contextlib.suppress(OSError, ValueError):  # a log that is full, a pipe whose reader left
                sink.event(printable(text), level)

    def close(self) -> None:
        for sink in self._sinks:
            with contextlib.suppress(OSError, ValueError):
                sink.close()


def _make_sinks(config: Config, folder: Path, notify: Callable[[str], None]) -> list[Sink]:
    settings = config.monitor
    console = make_console(settings.console, config.train.log_interval)
    sinks: list[Sink] = [] if console is None else [console]
    sinks += [JsonlSink(folder / "metrics.jsonl"), StartsSink(folder, config)]
    if settings.tensorboard:
        sinks.append(TensorboardSink(folder, notify))
    if settings.wandb != "off":
        about = {**dataclasses.asdict(config), "environment": environment(config.run.device)}
        sinks.append(WandbSink(settings.wandb, settings.wandb_project, folder, about, notify, settings.wandb_group))
    return sinks
