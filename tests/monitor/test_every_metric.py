"""Every documented metric is in wandb's offline folder of a real run, which wandb's own `sync` uploads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.monitor.metrics import EVENT, METRICS, Record
from engine.monitor.profile.summary import read_summary
from engine.monitor.step_parts import PARTS
from tests.monitor.test_wandb_sink import history, read_records, wait_for_exit
from tests.monitor.wandb_server import serving
from tests.ranks import run_ranks
from tests.system.runs import corpus, metrics
from tests.voyages import settings, train_here

GPU: Record = {
    "gpu_power_w": 650.0, "gpu_temperature_c": 63, "gpu_clock_mhz": 1755, "gpu_busy_percent": 97, "gpu_ecc_errors": 0,
}  # fmt: skip


class Driver:
    """Stands for the driver of a GPU."""

    def __init__(self, device: object) -> None: ...

    def readings(self) -> Record:
        return GPU


def train_with_gpu(rank: int, world: int, config: object) -> None:
    from engine.monitor import monitor

    os.environ["NETRC"] = "/dev/null"
    monitor.Nvml = Driver  # type: ignore[assignment,misc]
    train_here(rank, world, config)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages whose second checkpoint finds the disk full."""
    root = tmp_path_factory.mktemp("watched")
    corpus(root)
    config = settings(
        root, "watched", train={"steps": 4, "eval_interval": 2}, checkpoint={"interval": 1, "asynchronous": False},
        monitor={"wandb": "offline", "wandb_group": "watched-ones", "peak_tflops": 1.0, "param_norm_interval": 2},
        parallel={"pp": 2}, profile={"steps": "2:3"},
    )  # fmt: skip
    config.faults = [{"what": "no_space", "rank": 0, "step": 2}]
    run_ranks(2, train_with_gpu, config)
    return root / "watched"


def test_the_offline_folder_holds_every_documented_metric(folder: Path) -> None:
    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    wait_for_exit([file])
    rows = history(file)
    found = {name for row in rows for name in row}
    assert {metric.dashboard for metric in METRICS.values()} <= found
    assert {name for name in found if not name.startswith("_")} == {m.dashboard for m in METRICS.values()} | {"step"}
    assert all("step" in row and "consumed_tokens" in row for row in rows if "lm loss" in row)
    [told] = [row for row in rows if EVENT in row]
    assert "NOT saved" in told[EVENT]
    run = next(r.run for r in read_records(file) if r.WhichOneof("record_type") == "run")
    assert run.run_group == "watched-ones"
    known = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert known["train"]["steps"] == 4
    assert known["environment"]["torch"]
    assert "code" in known["environment"]
    alerts = [r.alert for r in read_records(file) if r.WhichOneof("record_type") == "alert"]
    assert len(alerts) == 1


def test_wandb_syncs_the_offline_folder(folder: Path) -> None:
    """wandb's own reader: its command uploads the folder, here to a stand-in of its server."""
    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    wait_for_exit([file])
    command = [str(Path(sys.executable).with_name("wandb")), "sync", str(file.parent)]
    with serving() as received:
        login = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": received.address}
        done = subprocess.run(
            command, env={**os.environ, **login}, cwd=folder, capture_output=True, text=True, timeout=200, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {metric.dashboard for metric in METRICS.values()} <= {name for row in received.rows for name in row}
    assert [row["step"] for row in received.rows if "lm loss" in row] == [1, 2, 3, 4]
    identity = (folder / "wandb_id").read_text()
    assert {(run["name"], run["groupName"]) for run in received.runs if run.get("groupName")} == {
        (identity, "watched-ones")
    }


def test_the_parts_of_a_step_are_within_it(folder: Path) -> None:
    rows = [row for row in metrics(folder.parent, "watched") if "loss" in row]
    for row in rows:
        parts = [row[f"{part}_time_s"] for part in PARTS]
        assert min(parts) >= 0
        assert sum(parts) <= row["step_time_s"]
        assert row["compute_time_s"] > 0
        assert row["bubble_time_s"] > 0  # there are stages
    assert ["param_norm" in row for row in rows] == [True, False, True, False]
    assert [row["alerts"] for row in rows] == [0, 0, 1, 1]


def test_a_profile_has_a_trace_of_each_rank_and_a_summary(folder: Path) -> None:
    for rank in range(2):
        events = json.loads((folder / "profile" / f"rank-{rank:05d}.json").read_text())["traceEvents"]
        names = {event.get("name") for event in events}
        assert {"forward", "backward", "optimizer"} <= names
        assert sum(event.get("name") == "optimizer" and event.get("cat") == "user_annotation" for event in events) == 2
    summary = read_summary(folder)
    assert summary is not None
    assert (summary.first, summary.last, len(summary.parts)) == (2, 3, 2)
    steps = [row["step_time_s"] for row in metrics(folder.parent, "watched") if row.get("step_time_s")]
    assert summary.seconds[0] == pytest.approx(sum(steps[1:3]))
    shares = summary.shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["compute"] > 0
    assert summary.describe().startswith("profile of steps 2 to 3: compute ")
