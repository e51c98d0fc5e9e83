"""A run folder as the report sees it. What is missing or damaged becomes a notice on the page, never an exception."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.checkpoint.folder import saved_steps, step_path
from engine.checkpoint.manifest import MANIFEST, Manifest
from engine.errors import CheckpointError, ConfigError, LedgerError, explained
from engine.monitor.report.events import Entry, Event, entries, find_events
from engine.monitor.report.table import Table, branches, to_table
from engine.monitor.starts import STARTS
from engine.stability.ledger import Chain, Record, read_ledger

METRICS_FILE, LEDGER_FILE = "metrics.jsonl", "ledger.jsonl"
_MOST_STEPS = 10**15
_FILES = (METRICS_FILE, LEDGER_FILE, STARTS, "checkpoints")


@dataclass
class Run:
    """All that is known of one run. `config` is the newest one, empty when nothing says it."""

    path: Path
    name: str
    steps: Table
    abandoned: list[Table]
    validations: list[dict[str, Any]]
    checkpoints: list[dict[str, Any]]
    ledger: list[Entry]
    starts: list[dict[str, Any]]
    config: dict[str, Any]
    vocab: int | None
    events: list[Event]
    written: float  # wall time of the newest record, seconds since 1970; 0 when there is none
    notices: list[str] = field(default_factory=list)

    def number(self, key: str) -> float | None:
        """Return the configured number of a dotted key; None where it is none."""
        value = self.setting(key)
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def step(self) -> int:
        """Steps made."""
        return int(self.steps.steps[-1]) if len(self.steps) else 0

    def setting(self, key: str, default: Any = None) -> Any:
        """Return the configured value of a dotted key."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Return run folders: those given, and of any other folder the runs in it; ConfigError where there are none."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path} is no folder; name a run folder, such as runs/default, or a folder of runs.")
        with explained(f"{path} cannot be read", "make it readable"):
            inside = [path] if _is_run(path) else sorted(child for child in path.iterdir() if _is_run(child))
        if not inside:
            raise ConfigError(
                f"{path} is neither a run folder (it holds none of {', '.join(_FILES)}) nor a folder of runs; name "
                "one that launch/pretrain.py wrote, such as runs/default."
            )
        found += [run for run in inside if run not in found]
    return found


def _is_run(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in _FILES)


def read_run(path: Path) -> Run:
    """Read a run folder; DiskError where the operating system refuses."""
    notices: list[str] = []
    with explained(f"{path} cannot be read", "make it readable"):
        others: list[dict[str, Any]] = []
        steps, left = branches(to_table(_steps(path / METRICS_FILE, notices, others)))
        starts = list(_lines(path / STARTS, notices))
        ledger = entries(_ledger(path / LEDGER_FILE, notices))
        config, vocab = _config(path, starts, notices)
        metrics = path / METRICS_FILE
        written = metrics.stat().st_mtime if metrics.exists() else 0.0
    if not len(steps):
        notices.append(
            f"no training step is recorded: {METRICS_FILE} {'is empty' if metrics.exists() else 'is missing'}"
        )
    return Run(
        path=path, name=path.resolve().name, steps=steps, abandoned=left,
        validations=_latest(record for record in others if any(key.startswith(("valid_", "valid/")) for key in record)),
        checkpoints=_latest(record for record in others if "checkpoint_bytes" in record),
        ledger=ledger, starts=starts, config=config, vocab=vocab, events=find_events(ledger, starts, left),
        written=written, notices=notices,
    )  # fmt: skip


def _steps(path: Path, notices: list[str], others: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the training records of metrics.jsonl; `others` gets what else happened to the steps that still stand."""
    reached = 0
    for record in _lines(path, notices):
        numbers = {key: value for key, value in record.items() if value is None or _is_number(value)}
        if "loss" not in numbers:
            others.append(numbers)
            continue
        if record["step"] <= reached:  # the run went back
            others[:] = [other for other in others if other["step"] < record["step"]]
        reached = record["step"]
        yield numbers


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 1000)  # that a float can hold


def _lines(path: Path, notices: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of JSON lines; none when it is missing, and a notice on lines that are none."""
    bad = 0
    if path.exists():
        with open(path, "rb") as file:
            for line in file:
                record = _record(line)
                bad += record is None
                if record is not None:
                    yield record
    if bad:
        notices.append(f"{path.name}: {bad} {'line is' if bad == 1 else 'lines are'} damaged or cut off and left out")


def _record(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(line)
        if isinstance(record, dict) and type(record.get("step")) is int and 0 <= record["step"] < _MOST_STEPS:
            return record
    return None


def _latest(records: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one record of each step, the last written: a rollback repeats steps. Sorted by step."""
    found = {record["step"]: record for record in records}
    return [found[step] for step in sorted(found)]


def _ledger(path: Path, notices: list[str]) -> list[Record]:
    """Return the ledger's records, of a damaged one those before the damage."""
    try:
        chain, torn = read_ledger(path)
        if torn:
            notices.append(f"{path.name}: the last line was cut off by a crash and is left out")
        return chain.records
    except LedgerError as error:
        notices.append(f"{error} Later lines are left out here.")
    sound = Chain(path.name)
    with contextlib.suppress(LedgerError):
        for line in path.read_bytes().split(b"\n"):
            sound.add(line)
    return sound.records


def _config(path: Path, starts: list[dict[str, Any]], notices: list[str]) -> tuple[dict[str, Any], int | None]:
    """Return the newest configuration and vocabulary size that a start or a checkpoint tells of."""
    config: Any = next((start["config"] for start in reversed(starts) if "config" in start), {})
    vocab = None
    folder = path / "checkpoints"
    for step in saved_steps(folder):
        try:
            meta = Manifest.decode((step_path(folder, step) / MANIFEST).read_bytes()).meta
        except (OSError, CheckpointError) as error:
            notices.append(f"checkpoint of step {step:,}: {error}")
            continue
        config, vocab = config or meta.get("config", {}), meta.get("vocab_size")
        break
    if not config:
        notices.append(f"the configuration is unknown: neither {STARTS} nor a checkpoint holds it")
    return (config if isinstance(config, dict) else {}), (vocab if isinstance(vocab, int) else None)
