"""wandb without a network: what was logged is in the file, ids last, failures don't."""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.monitor import wandb_sink
from engine.monitor.metrics import WARN
from engine.monitor.wandb_sink import WandbSink, choose_mode, run_id
from tests.monitor.records import step_values

KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL")


@pytest.fixture(autouse=True)
def logged_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def read_records(path: Path) -> Iterator[Any]:
    """Parse a .wandb file with wandb's own protocol: LevelDB log blocks of protobuf records."""
    from wandb.proto import wandb_internal_pb2  # generated code, which mypy cannot see into

    data, at, partial = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        partial += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(partial)
            yield record
            partial = b""


def wait_for_exit(files: list[Path]) -> None:
    """Wait until each file holds its last record: wandb's own process may still be writing it."""
    deadline = time.monotonic() + 30
    while not all(any(r.WhichOneof("record_type") == "exit" for r in read_records(file)) for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def history(path: Path) -> list[dict[str, Any]]:
    rows = []
    for record in read_records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return rows


def test_offline_run_holds_what_was_logged_under_one_id(tmp_path: Path) -> None:
    notices: list[str] = []
    for attempt in (0, 2):
        sink = WandbSink("auto", "trimaran-test", tmp_path, {"train": {"steps": 4}}, notices.append)
        sink.begin(attempt, 4)
        for step in (attempt + 1, attempt + 2):
            sink.log({"step": step, **step_values(loss=1.0 / step)})
        sink.log({"step": attempt + 2, "valid_loss": 2.5, "valid_perplexity": 12.2})
        sink.event("checkpoint of step 2 saved")
        sink.event("step 2: loss 9 nats above normal: rollback", WARN)
        sink.close()
    assert notices == []
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    wait_for_exit(files)
    identity = (tmp_path / "wandb_id").read_text()
    assert [file.name for file in files] == [f"run-{identity}.wandb"] * 2
    rows = [row for file in files for row in history(file)]
    losses = {row["step"]: row["lm loss"] for row in rows if "lm loss" in row}
    assert losses == {step: 1.0 / step for step in (1, 2, 3, 4)}
    assert {row["step"] for row in rows if row.get("lm loss validation") == 2.5} == {2, 4}
    assert all(row["learning-rate"] == 3e-4 for row in rows if "lm loss" in row)
    assert all(row["consumed_tokens"] == 2048 for row in rows)  # an axis for validations as well
    alerts = [r.alert for file in files for r in read_records(file) if r.WhichOneof("record_type") == "alert"]
    told = [(alert.title, alert.text, alert.level) for alert in alerts]
    assert told == [(f"{tmp_path.name}: step 2"[:63], "step 2: loss 9 nats above normal: rollback", "WARN")] * 2
    runs = [r.run for r in read_records(files[0]) if r.WhichOneof("record_type") == "run"]
    assert runs[0].project == "trimaran-test"
    assert "train" in {item.key for item in runs[0].config.update}


def test_id_is_made_once(tmp_path: Path) -> None:
    assert run_id(tmp_path) == run_id(tmp_path)
    (tmp_path / "wandb_id").write_text("")  # a crash in the middle
    assert run_id(tmp_path)


def test_mode_never_leads_to_a_prompt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert [choose_mode(mode) for mode in ("auto", "offline", "online")] == ["offline"] * 3
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "a" * 40)
    assert [choose_mode(mode) for mode in ("auto", "offline", "online")] == ["online", "offline", "online"]
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert [choose_mode(mode) for mode in ("auto", "online")] == ["offline", "online"]
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert choose_mode("online") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert choose_mode("online") == "online"


def test_online_without_login_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    notices: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb())
    sink = WandbSink("online", "p", tmp_path, {}, notices.append)
    sink.begin(0, 1)
    assert notices == ["wandb: not logged in, so the run is recorded offline; `wandb sync` uploads it later"]


class FakeWandb:
    """A wandb whose runs fail when they are logged to."""

    def __init__(self) -> None:
        self.finished = False

    def Settings(self, **settings: object) -> dict[str, object]:
        return settings

    def init(self, **settings: object) -> FakeWandb:
        assert settings["mode"] == "offline"
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, row: dict[str, float]) -> None:
        raise ConnectionError("the service is gone")

    def finish(self) -> None:
        self.finished = True


def test_a_failure_is_told_once_and_training_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    notices: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb())
    sink = WandbSink("auto", "p", tmp_path, {}, notices.append)
    sink.begin(0, 3)
    for step in (1, 2, 3):
        sink.log({"step": step})
    sink.close()
    assert notices == ["wandb failed and is off for the rest of this run: ConnectionError: the service is gone"]


def test_a_missing_package_is_a_failure_like_any_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    notices: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", None)
    sink = wandb_sink.WandbSink("auto", "p", tmp_path, {}, notices.append)
    sink.begin(0, 1)
    sink.log({"step": 1})
    assert len(notices) == 1
    assert "wandb" in notices[0]
