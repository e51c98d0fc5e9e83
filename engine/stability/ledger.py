"""`ledger.jsonl`: what a run decided on its way, append-only, each record on the disk before it is acted on.

A record is one line of JSON. It holds the sha256 of the line before it, which makes the lines a chain, and ends with
the sha256 of its own content, so that the newest line is guarded too. A decision is an *intent*, then, once carried
out, a *commit* that names it; an intent without its commit is carried out again by whoever reads the ledger next.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.shard import fsync_folder
from engine.errors import LedgerError, explained

NOTE, INTENT, COMMIT = "note", "intent", "commit"
_START = "0" * 64  # what the first line holds for the sha256 of a line before it
_SEAL = b',"sha256":"'
_SEAL_LENGTH = len(_SEAL) + 64 + 2


@dataclass(frozen=True)
class Record:
    """One line. `time` is wall time in seconds since 1970; numbers in `body` that are not finite come as strings."""

    seq: int
    time: float
    kind: str  # intent | commit | note
    body: dict[str, Any]
    previous: str  # sha256 of the line before
    line: bytes  # as it stands in the file, without its end of line

    @property
    def hash(self) -> str:
        """The sha256 of the line, which the next one holds."""
        return hashlib.sha256(self.line).hexdigest()


class Chain:
    """The records known so far, each held to the one before it. Equal on all ranks that are given the same lines."""

    def __init__(self, name: str = "ledger.jsonl") -> None:
        self.name = name
        self.records: list[Record] = []

    @property
    def tip(self) -> str:
        """The sha256 of the last line, which the next one must hold."""
        return self.records[-1].hash if self.records else _START

    def add(self, line: bytes) -> Record:
        """Take a line up; LedgerError when it is not the one that follows."""
        try:
            record = _decode(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._refuse("is damaged") from None
        if record.seq != len(self.records) or record.previous != self.tip:
            raise self._refuse("does not follow from the lines before it")
        pending = self.pending()
        if record.kind == COMMIT and (pending is None or record.body.get("intent") != pending.seq):
            raise self._refuse("commits what is not pending")
        if record.kind == INTENT and pending is not None:
            raise self._refuse(f"is an intent before that of line {pending.seq + 1} was committed")
        self.records.append(record)
        return record

    def pending(self) -> Record | None:
        """Return the intent that has no commit yet."""
        for record in reversed(self.records):
            if record.kind == INTENT:
                return record
            if record.kind == COMMIT:
                return None
        return None

    def _refuse(self, what: str) -> LedgerError:
        return LedgerError(
            f"{self.name}: line {len(self.records) + 1} {what}; put back the ledger that the run wrote, or train on "
            "under another run.name from a checkpoint of this run."
        )


def read_ledger(path: Path) -> tuple[Chain, str]:
    """Return the records of the file, none when it is missing, and a word on a torn last line, else "".

    A line is torn when a crash in the middle of an append left it without its end or with a page that never reached
    the disk. LedgerError for any other damage.
    """
    chain = Chain(str(path))
    with explained(f"{path} cannot be read", "make it readable, or write another run.name"):
        data = path.read_bytes() if path.exists() else b""
    whole = _whole_size(data)
    for line in data[:whole].split(b"\n")[:-1]:
        chain.add(line)
    torn = len(data) - whole
    return chain, f"{path}: cut off {torn} bytes of a line that a crash had left unfinished" if torn else ""


class Ledger:
    """The file of the one rank that writes it. Other ranks read it at start and `Chain.add` what is appended."""

    def __init__(self, path: Path) -> None:
        """Open or create the file; a torn last line is cut off, and `warning` says so."""
        self.path = path
        self.chain, self.warning = read_ledger(path)
        self._size = sum(len(record.line) + 1 for record in self.chain.records)
        with self._explained():
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(self._file, self._size)
            os.fsync(self._file)
            fsync_folder(path.parent)

    def append(self, kind: str, body: dict[str, Any]) -> Record:
        """Write a record; it is on the disk when this returns. DiskError, and no part of it left, when it cannot be.

        Its `line` is what the other ranks need.
        """
        record = self.chain.add(_encode(len(self.chain.records), time.time(), kind, body, self.chain.tip))
        try:
            with self._explained():
                _write(self._file, record.line + b"\n", self._size)
                os.fsync(self._file)
        except BaseException:
            self.chain.records.pop()
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(record.line) + 1
        return record

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _explained(self) -> AbstractContextManager[None]:
        return explained(f"{self.path} cannot be written", "make room there, and start the same command again")


def _write(file: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _whole_size(data: bytes) -> int:
    """Return the size of `data` without a torn last line."""
    end = data.rfind(b"\n") + 1
    last = data.rfind(b"\n", 0, max(0, end - 1)) + 1
    return last if end == len(data) and b"\0" in data[last:end] else end


def _encode(seq: int, moment: float, kind: str, body: dict[str, Any], previous: str) -> bytes:
    fields = {"seq": seq, "time": moment, "kind": kind, "body": _plain(body), "previous": previous}
    content = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
    return content[:-1] + _SEAL + hashlib.sha256(content).hexdigest().encode() + b'"}'


def _decode(line: bytes) -> Record:
    content, seal = line[:-_SEAL_LENGTH] + b"}", line[-_SEAL_LENGTH:]
    if seal != _SEAL + hashlib.sha256(content).hexdigest().encode() + b'"}':
        raise ValueError("the line's own sha256 does not match")
    fields = json.loads(content)
    if fields["kind"] not in (NOTE, INTENT, COMMIT) or not isinstance(fields["body"], dict):
        raise ValueError("no record of ours")
    return Record(int(fields["seq"]), fields["time"], fields["kind"], fields["body"], fields["previous"], line)


def _plain(value: Any) -> Any:
    """Return `value` with numbers that JSON has no word for as strings: a ledger tells of NaN, and does not fail."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
