"""TensorBoard's files, read back by the format's own rules."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.config import Config
from engine.monitor import tensorboard_sink
from engine.monitor.monitor import Monitor
from engine.monitor.tensorboard_sink import TensorboardSink, _checksum
from tests.monitor.records import step_values


def events(folder: Path) -> Iterator[dict[int, Any]]:
    """Yield the fields of every event in `folder`, after checking lengths and checksums."""
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            length = data[:8]
            size = struct.unpack("<Q", length)[0]
            event = data[12 : 12 + size]
            assert data[8:12] == _checksum(length)
            assert data[12 + size : 16 + size] == _checksum(event)
            yield dict(fields(event))
            data = data[16 + size :]


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of the fields of a protobuf message."""

    def varint() -> int:
        nonlocal data
        value = shift = 0
        while True:
            byte, data = data[0], data[1:]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while data:
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        part, data = data[:size], data[size:]
        yield key >> 3, struct.unpack({1: "<d", 5: "<f"}[key & 7], part)[0] if key & 7 in (1, 5) else part


def scalars(event: dict[int, Any]) -> dict[str, float]:
    values = [dict(fields(value)) for _, value in fields(event[5])]
    return {value[1].decode(): value[2] for value in values}


def test_checksum_is_the_published_one() -> None:
    """CRC-32C of 32 bytes of zeros is 8a9136aa (RFC 3720, B.4), here masked as TensorFlow does."""
    crc = 0x8A9136AA
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert _checksum(bytes(32)) == struct.pack("<I", masked)


def test_a_run_and_its_resumption(tmp_path: Path) -> None:
    config = Config()
    config.monitor.tensorboard = True
    config.monitor.console = "off"
    for begin in (0, 300):
        monitor = Monitor(config, tmp_path, is_writer=True)
        monitor.begin(begin, 400)
        monitor.log(begin + 1, step_values(loss=2.5, grad_norm=math.nan, lr=1e300))
        monitor.log_validation(begin + 1, 2.25, 0.5)
        monitor.close()
    found = list(events(tmp_path))
    assert found[0][3] == b"brain.Event:2"
    assert [dict(fields(event[7])) for event in found if 7 in event] == [{1: 1}] * 2
    assert [event.get(2) for event in found] == [None, 1, 1, 1, None, 301, 301, 301]
    steps = scalars(found[2])
    assert (steps["lm loss"], steps["consumed_tokens"], steps["learning-rate"]) == (2.5, 2048, math.inf)
    assert math.isnan(steps["grad-norm"])
    assert scalars(found[7])["lm loss validation"] == 2.25


def test_a_full_disk_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notices: list[str] = []
    sink = TensorboardSink(tmp_path, notices.append)
    sink.begin(0, 3)

    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorboard_sink.os, "write", full)
    for step in (1, 2):
        sink.log({"step": step, "loss": 1.0})
    assert notices == ["TensorBoard's file cannot be written and ends here: No space left on device"]
