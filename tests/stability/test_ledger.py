"""The ledger: what was appended comes back, a torn end is cut off, and nothing else that is wrong goes unseen."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import DiskError, LedgerError
from engine.stability.ledger import COMMIT, INTENT, NOTE, Chain, Ledger, _encode, read_ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def written(path: Path, count: int = 4) -> list[bytes]:
    """Write `count` records; return their lines."""
    path.unlink(missing_ok=True)
    ledger = Ledger(path)
    lines = [ledger.append(NOTE, {"text": f"note {k} ü", "values": [k, 0.1 * k]}).line for k in range(count)]
    ledger.close()
    return lines


def test_records_come_back_on_every_rank(path: Path) -> None:
    ledger, other = Ledger(path), Chain()
    intent = ledger.append(INTENT, {"action": {"to": 3}, "loss": math.nan, "norm": math.inf})
    other.add(intent.line)
    assert other.pending() == ledger.chain.pending() == intent
    assert intent.body == {"action": {"to": 3}, "loss": "nan", "norm": "inf"}
    other.add(ledger.append(NOTE, {}).line)
    assert other.pending() == intent
    other.add(ledger.append(COMMIT, {"intent": intent.seq}).line)
    assert other.pending() is None
    ledger.close()
    again = Ledger(path)
    assert again.warning == ""
    other.add(again.append(NOTE, {"text": "after a restart"}).line)
    again.close()
    assert read_ledger(path)[0].records == other.records
    assert [json.loads(line)["seq"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_no_file_is_no_records(path: Path) -> None:
    chain, warning = read_ledger(path)
    assert (chain.records, warning, path.exists()) == ([], "", False)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_crash_anywhere_in_an_append_loses_that_record_only(path: Path, kept: int) -> None:
    lines = written(path, kept + 1)
    whole = b"".join(line + b"\n" for line in lines[:kept])
    for size in range(1, len(lines[kept]) + 1):
        path.write_bytes(whole + lines[kept][:size])
        chain, warning = read_ledger(path)
        assert [record.line for record in chain.records] == lines[:kept]
        assert f"cut off {size} bytes" in warning
    path.write_bytes(whole + b"\0" * 40 + lines[kept][40:] + b"\n")  # its second page reached the disk, not its first
    ledger = Ledger(path)
    assert "cut off" in ledger.warning
    assert path.read_bytes() == whole
    ledger.append(NOTE, {"text": "goes on"})
    ledger.close()
    assert len(read_ledger(path)[0].records) == kept + 1


@given(where=st.integers(0, 1 << 30), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_is_refused_or_looks_torn(path: Path, where: int, bit: int) -> None:
    """Only the last line's end of line and a NUL in the last line can make it look torn: no other record is lost."""
    lines = written(path)
    content = bytearray(path.read_bytes())
    place = where % len(content)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    if place == len(content) - 1 or (content[place] == 0 and place >= len(content) - len(lines[-1]) - 1):
        chain, warning = read_ledger(path)
        assert [record.line for record in chain.records] == lines[:-1]
        assert "cut off" in warning
    else:
        with pytest.raises(LedgerError, match=r"line \d .*; put back the ledger that the run wrote"):
            read_ledger(path)


@pytest.mark.parametrize("change", ["drop first", "drop middle", "repeat", "swap", "foreign", "empty line", "text"])
def test_lines_that_do_not_follow_are_refused(path: Path, tmp_path: Path, change: str) -> None:
    lines = written(path)
    foreign = written(tmp_path / "other.jsonl")
    changed = {
        "drop first": lines[1:],
        "drop middle": [lines[0], *lines[2:]],
        "repeat": [*lines, lines[-1]],
        "swap": [lines[1], lines[0], *lines[2:]],
        "foreign": [*lines[:2], foreign[2], lines[3]],
        "empty line": [*lines[:2], b"", *lines[2:]],
        "text": [*lines, b'{"kind":"commit"}'],
    }[change]
    path.write_bytes(b"".join(line + b"\n" for line in changed))
    with pytest.raises(LedgerError, match=r"ledger\.jsonl: line \d (is damaged|does not follow)"):
        Ledger(path)


def test_intents_and_commits_come_in_pairs(path: Path) -> None:
    ledger = Ledger(path)
    with pytest.raises(LedgerError, match="commits what is not pending"):
        ledger.append(COMMIT, {"intent": 0})
    intent = ledger.append(INTENT, {})
    with pytest.raises(LedgerError, match="before that of line 1 was committed"):
        ledger.append(INTENT, {})
    with pytest.raises(LedgerError, match="commits what is not pending"):
        ledger.append(COMMIT, {"intent": intent.seq + 1})
    ledger.append(COMMIT, {"intent": intent.seq})
    ledger.close()
    assert [record.kind for record in read_ledger(path)[0].records] == [INTENT, COMMIT]


def test_a_record_is_on_the_disk_when_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real_fsync, real_pwrite = os.fsync, os.pwrite
    monkeypatch.setattr(
        os, "fsync", lambda file: (calls.append(f"fsync {os.readlink(f'/proc/self/fd/{file}')}"), real_fsync(file))[1]
    )
    monkeypatch.setattr(os, "pwrite", lambda *args: (calls.append("write"), real_pwrite(*args))[1])
    ledger = Ledger(path)
    assert calls == [f"fsync {path}", f"fsync {path.parent}"]  # the name is there before the first record
    calls.clear()
    ledger.append(NOTE, {})
    assert calls == ["write", f"fsync {path}"]
    ledger.close()


def test_a_full_disk_leaves_no_part_of_a_record(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(path)
    first = ledger.append(NOTE, {"text": "before"})
    real_pwrite = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        if offset > len(first.line) + 1:
            raise OSError(28, "No space left on device")
        return real_pwrite(file, data[:10], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(DiskError, match=r"ledger\.jsonl cannot be written: No space left on device; make room"):
            ledger.append(NOTE, {"text": "lost"})
    assert path.read_bytes() == first.line + b"\n"
    last = ledger.append(NOTE, {"text": "after"})
    ledger.close()
    assert read_ledger(path)[0].records == [first, last]


def test_what_is_sealed_and_no_record_is_refused() -> None:
    deep = _encode(0, 0.0, NOTE, {"text": "@"}, Chain().tip).replace(b'"@"', b"[" * 100_000 + b"]" * 100_000)
    content = deep[: -(len(b',"sha256":""}') + 64)] + b"}"
    deep = content[:-1] + b',"sha256":"' + hashlib.sha256(content).hexdigest().encode() + b'"}'
    for line in (_encode(0, 0.0, "whim", {}, Chain().tip), _encode(0, 0.0, NOTE, [], Chain().tip), deep):  # type: ignore[arg-type]
        with pytest.raises(LedgerError, match="line 1 is damaged"):
            Chain().add(line)
