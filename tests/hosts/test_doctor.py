"""The doctor under torchrun, on two hosts: a cable that has become slow is a fault, and its ends are named."""

from __future__ import annotations

from pathlib import Path

from tests.hosts.hosts import two_hosts
from tests.hosts.test_training import finish, said, start


def test_a_slow_cable_is_found(tmp_path: Path) -> None:
    with two_hosts() as hosts:
        for host in hosts:
            host.slow_down("40mbit")
        meet = ["--nproc-per-node=1", "--node-rank={node}", f"--master-addr={hosts[0].name}", "--master-port=29503"]
        overrides = ("parallel.dp=2", f"run.root={tmp_path}/runs")
        codes = finish(start(hosts, meet, tmp_path, *overrides, script="launch/doctor.py"), tmp_path)
        lines = [" ".join(line.split()) for line in said(tmp_path, 0).splitlines()]
        between = f"between rank 0 on {hosts[0].name} and rank 1 on {hosts[1].name}"
    assert codes == [1, 1], lines  # what torchrun makes of a rank's 3
    faults = [line for line in lines if line.startswith("fault ")]
    assert len(faults) == 1, lines
    assert faults[0].startswith("fault links dp: ")
    assert between in faults[0]
    assert any(line.startswith("ok folder") for line in lines)
    assert any(line.startswith("ok clocks") for line in lines)
    assert f"ok ports all ranks have met at {hosts[0].name}:29503" in lines
