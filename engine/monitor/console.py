"""What people watch: a progress bar on a terminal, one aligned line per step elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from engine.monitor.metrics import INFO, Record, set_metrics


def make_console(kind: str, log_interval: int, stream: TextIO | None = None) -> PlainConsole | RichConsole | None:
    """Return the sink that monitor.console names: rich on a terminal and plain elsewhere for auto; None for off."""
    stream = stream or sys.stdout
    if kind == "off":
        return None
    if kind == "rich" or (kind == "auto" and stream.isatty()):
        return RichConsole(log_interval, stream)
    return PlainConsole(log_interval, stream)


class PlainConsole:
    """Lines that read well in a log file."""

    def __init__(self, log_interval: int, stream: TextIO) -> None:
        self.log_interval, self.stream = log_interval, stream
        self.clock = Clock()

    def begin(self, step: int, total: int, timeline: int = 0) -> None:
        self.clock.begin(step, total)

    def log(self, record: Record) -> None:
        if "loss" not in record:
            self.event(describe(record))
            return
        self.clock.tick(int(record["step"]))
        if self.clock.due(self.log_interval):
            total = str(self.clock.total)
            place = f"{record['step']:>{len(total)}}/{total}"
            self.event("  ".join([f"step {place}", *_numbers(record), f"eta {self.clock.eta()}"]))

    def event(self, text: str, level: str = INFO) -> None:
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Nothing is held open."""


class RichConsole:
    """A live progress bar with the newest numbers; notices scroll by above it."""

    def __init__(self, log_interval: int, stream: TextIO) -> None:
        self.log_interval = log_interval
        self.console = Console(file=stream, highlight=False)
        self.clock = Clock()
        self.progress = _TwoLines(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            _EtaColumn(self.clock),
            TextColumn("{task.fields[loss]}"),
            console=self.console,
            auto_refresh=False,  # drawn when a step is done, not by a thread that competes with the ranks for cores
        )
        self._task = self.progress.add_task("train", total=1, loss="", numbers="", visible=False)

    def begin(self, step: int, total: int, timeline: int = 0) -> None:
        self.clock.begin(step, total)
        self.progress.update(self._task, completed=step, total=total, visible=True)
        self.progress.start()

    def log(self, record: Record) -> None:
        if "loss" not in record:
            self.event(describe(record))
            return
        self.clock.tick(int(record["step"]))
        loss, *others = (" ".join(part.split()) for part in _numbers(record))
        self.progress.update(self._task, completed=int(record["step"]), loss=loss, numbers="  ".join(others))
        self.progress.refresh()

    def event(self, text: str, level: str = INFO) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        self.progress.stop()


class _TwoLines(Progress):
    """A bar and below it the other numbers of the step: on one line they would be too wide for a terminal."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.visible:
                yield Text(task.fields["numbers"], no_wrap=True, overflow="ellipsis")


class _EtaColumn(ProgressColumn):
    """The time left, by the run's own clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def render(self, task: Task) -> Text:
        return Text(f"eta {self.clock.eta()}")


class Clock:
    """Steps done and to do, and the time they take. The first step of a start is slower and does not count."""

    def __init__(self) -> None:
        self.first = self.step = self.total = 0
        self._since: float | None = None

    def begin(self, step: int, total: int, timeline: int = 0) -> None:
        self.first, self.step, self.total, self._since = step, step, total, None

    def tick(self, step: int) -> None:
        self.step = step
        if self._since is None:
            self._since = time.monotonic()

    def due(self, interval: int) -> bool:
        """Return whether this step's line is wanted: every `interval` steps, the first and the last one."""
        return self.step % interval == 0 or self.step in (self.first + 1, self.total)

    def eta(self) -> str:
        """Return the time left as h:mm:ss or m:ss; -:-- while unknown."""
        timed = self.step - self.first - 1
        if self._since is None or timed < 1:
            return "-:--"
        left = round((time.monotonic() - self._since) / timed * (self.total - self.step))
        hours, minutes, seconds = left // 3600, left // 60 % 60, left % 60
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _numbers(record: Record) -> list[str]:
    """Return what a step shows, loss first, each padded to line up with the steps above it."""
    parts = [
        f"loss {record['loss']:7.4f}",
        f"lr {record['lr']:.2e}",
        f"grad norm {record['grad_norm']:8.3f}",
        f"tokens/s {record['tokens_per_s']:9,.0f}",
        _speed(record),
        f"mem {record['memory_gib']:.2f} GiB",
    ]
    if record["loss_scale"] != 1:
        parts.append(f"loss scale {record['loss_scale']:g}")
    if record["skipped"]:
        parts.append("update skipped: gradients not finite")
    return parts


def _speed(record: Record) -> str:
    if "mfu_percent" in record:
        return f"MFU {record['mfu_percent']:4.1f}%"
    tflops = record["tflops_per_device"]
    return f"{tflops:6.1f} TFLOP/s/rank" if tflops >= 1 else f"{1000 * tflops:6.1f} GFLOP/s/rank"


def describe(record: Record) -> str:
    """Return the line for a record that is not of a step: a validation or a checkpoint."""
    parts = [_scores(f"{name} ", metrics) for name, metrics in set_metrics(record).items()]
    if "valid_loss" in record:
        parts.insert(0, _scores("", {"loss": record["valid_loss"], "perplexity": record["valid_perplexity"]}))
    if parts:
        return f"validation at step {record['step']}: {'; '.join(parts)}"
    return (
        f"checkpoint of step {record['step']} saved: {record['checkpoint_bytes'] / 1e6:,.1f} MB in "
        f"{record['checkpoint_save_s']:.2f} s, training waited {record['checkpoint_stall_s']:.2f} s"
    )


def _scores(name: str, metrics: Mapping[str, float]) -> str:
    per_byte = f", bits per byte {metrics['bits_per_byte']:.4f}" if "bits_per_byte" in metrics else ""
    return f"{name}loss {metrics['loss']:.4f}, perplexity {metrics['perplexity']:.2f}{per_byte}"
