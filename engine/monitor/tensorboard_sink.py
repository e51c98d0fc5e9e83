"""TensorBoard's event files, written without TensorBoard: a few protobuf fields, framed and checksummed.

A file is a sequence of records: length (uint64), its masked CRC-32C, an `Event`, its masked CRC-32C, all little-endian
(tensorflow/core/lib/io/record_writer.h and util/event.proto of TensorFlow describe both).
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from engine.monitor.metrics import INFO, METRICS, Record

_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # wire types
_STARTED = b"\x08\x01"  # SessionLog with status START: TensorBoard forgets what it had read from this step on


class TensorboardSink:
    """Appends each record's numbers, by the names of dashboards, to a new event file of each start."""

    def __init__(self, folder: Path, notify: Callable[[str], None]) -> None:
        self.folder, self.notify = folder / "tensorboard", notify
        self._file: int | None = None

    def begin(self, step: int, total: int, timeline: int = 0) -> None:
        """Open a file; points of later steps, from an earlier attempt, are no longer shown."""
        self.folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = os.open(self.folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._write(_field(3, _BYTES, b"brain.Event:2"))
        self._write(_field(2, _VARINT, step + 1) + _field(7, _BYTES, _STARTED))

    def log(self, record: Record) -> None:
        """Append the record; after a failure, which is told once, nothing more."""
        values = b"".join(
            _field(1, _BYTES, _field(1, _BYTES, _name(key).encode()) + _field(2, _FLOAT, value))
            for key, value in record.items()
            if key != "step"
        )
        try:
            self._write(_field(2, _VARINT, int(record["step"])) + _field(5, _BYTES, values))
        except OSError as error:
            self.close()
            self.notify(f"TensorBoard's file cannot be written and ends here: {error.strerror}")

    def event(self, text: str, level: str = INFO) -> None:
        """Notices are for people who watch the run."""

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, fields: bytes) -> None:
        if self._file is None:
            return
        event = _field(1, _DOUBLE, time.time()) + fields
        length = struct.pack("<Q", len(event))
        os.write(self._file, length + _checksum(length) + event + _checksum(event))


def _name(key: str) -> str:
    return METRICS[key].dashboard if key in METRICS else key


def _field(number: int, wire: int, value: float | bytes) -> bytes:
    """Return one protobuf field."""
    key = _varint(number << 3 | wire)
    if isinstance(value, bytes):
        return key + _varint(len(value)) + value
    if wire == _VARINT:
        return key + _varint(int(value))
    return key + struct.pack("<d" if wire == _DOUBLE else "<f", _in_range(value, wire))


def _in_range(value: float, wire: int) -> float:
    """Return `value`, or infinity where a float32 cannot hold it: struct would refuse it."""
    too_large = wire == _FLOAT and abs(value) > 3.4028234e38
    return float("inf") * (1 if value > 0 else -1) if too_large else value


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _make_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _make_table()


def _checksum(data: bytes) -> bytes:
    """Return the masked CRC-32C (Castagnoli) of `data`."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
