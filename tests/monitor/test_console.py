"""The console: aligned lines where output is no terminal, a bar where it is."""

from __future__ import annotations

import io
import re

import pytest

from engine.monitor.console import Clock, PlainConsole, RichConsole, describe, make_console
from tests.monitor.records import step_values


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def feed(kind: str, stream: io.StringIO, interval: int = 1, total: int = 12) -> str:
    console = make_console(kind, interval, stream)
    assert console is not None
    console.event("run folder runs/default [bold]")
    console.begin(0, total)
    for step in range(1, total + 1):
        console.log({"step": step, **step_values(loss=10.0 / step)})
    console.log({"step": total, "valid_loss": 2.0, "valid_perplexity": 7.389})
    console.log({"step": total, "checkpoint_bytes": 5_000_000, "checkpoint_save_s": 0.25, "checkpoint_stall_s": 0.01})
    console.close()
    return stream.getvalue()


def test_auto_asks_the_stream() -> None:
    assert isinstance(make_console("auto", 1, io.StringIO()), PlainConsole)
    assert isinstance(make_console("auto", 1, Terminal()), RichConsole)
    assert isinstance(make_console("plain", 1, Terminal()), PlainConsole)
    assert isinstance(make_console("rich", 1, io.StringIO()), RichConsole)
    assert make_console("off", 1, Terminal()) is None


def test_plain_lines_are_aligned_and_complete() -> None:
    text = feed("auto", io.StringIO())
    assert "\x1b" not in text
    assert "\r" not in text
    lines = [line for line in text.splitlines() if line.startswith("step")]
    assert len(lines) == 12
    assert len({line.index("loss") for line in lines}) == 1
    assert len({line.index("eta") for line in lines}) == 1
    assert re.fullmatch(
        r"step  1/12  loss 10\.0000  lr 3\.00e-04  grad norm +1\.250  tokens/s +4,096 +50\.0 GFLOP/s/rank  "
        r"mem 0\.50 GiB  eta -:--",
        lines[0],
    )
    assert lines[-1].endswith("eta 0:00")
    assert "run folder runs/default [bold]" in text
    assert "validation at step 12: loss 2.0000, perplexity 7.39" in text
    assert "checkpoint of step 12 saved: 5.0 MB in 0.25 s, training waited 0.01 s" in text


def test_log_interval_keeps_the_first_and_the_last_line() -> None:
    text = feed("plain", io.StringIO(), interval=5)
    assert re.findall(r"step +(\d+)/12", text) == ["1", "5", "10", "12"]


def test_rich_bar_shows_the_newest_numbers_and_notices_scroll_by() -> None:
    text = feed("auto", Terminal())
    assert "run folder runs/default [bold]" in text  # not taken for markup
    assert re.search(r"step 12/12 .*eta 0:00 loss 0\.8333 *\n *lr 3\.00e-04  grad norm 1\.250  .* mem 0\.50 GiB", text)
    assert "validation at step 12: loss 2.0000" in text


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"mfu_percent": 41.25}, "MFU 41.2%"),
        ({"tflops_per_device": 350.0}, "350.0 TFLOP/s/rank"),
        ({"loss_scale": 1024.0}, "loss scale 1024"),
        ({"skipped": 1, "loss": float("nan")}, "update skipped"),
    ],
)
def test_what_a_step_line_shows(changes: dict[str, float], shown: str) -> None:
    stream = io.StringIO()
    console = PlainConsole(1, stream)
    console.begin(0, 2)
    console.log({"step": 1, **step_values(**changes)})
    assert shown in stream.getvalue()


def test_time_left_leaves_out_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("engine.monitor.console.time.monotonic", lambda: now[0])
    clock = Clock()
    clock.begin(10, 20)
    now[0] += 50  # a slow first step
    clock.tick(11)
    assert clock.eta() == "-:--"
    for step in (12, 13):
        now[0] += 500
        clock.tick(step)
    assert clock.eta() == "0:58:20".removeprefix("0:")
    now[0] += 8000
    clock.tick(14)
    assert clock.eta() == "5:00:00"


def test_validation_sets_are_shown_by_name() -> None:
    record = {"step": 5, "valid/books/loss": 2.0, "valid/books/perplexity": 7.389, "valid/books/bits_per_byte": 0.9,
              "valid/code/loss": 1.0, "valid/code/perplexity": 2.718, "valid_time_s": 0.1}  # fmt: skip
    assert describe(record) == (
        "validation at step 5: books loss 2.0000, perplexity 7.39, bits per byte 0.9000; code loss 1.0000, "
        "perplexity 2.72"
    )
