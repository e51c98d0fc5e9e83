"""Two hosts, two ranks each: the same training as on one host, and an end in words when the cable is cut."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.hosts.hosts import Host, two_hosts
from tests.system.runs import REPO, command, corpus, environment, metrics, run, step_folder, weights

STEPS = 40
PLAN = ("precision=fp64", f"train.steps={STEPS}", "checkpoint.interval=4", "checkpoint.keep_last=1")
TIMEOUT_S = 240  # of a start on a busy box


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as pair:
        yield pair


@pytest.fixture(scope="module")
def one_host(tmp_path_factory: pytest.TempPathFactory, hosts: tuple[Host, Host]) -> Path:
    """The same run on one host, by one rank."""
    folder = tmp_path_factory.mktemp("one")
    corpus(folder)
    done = run(folder, *PLAN, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout
    return folder


def start(
    hosts: tuple[Host, Host],
    rendezvous: list[str],
    folder: Path,
    *overrides: str,
    script: str = "launch/pretrain.py",
) -> list[subprocess.Popen[str]]:
    """Start torchrun on both hosts, as a user types it there; `{node}` in `rendezvous` is the host's number."""
    nodes = []
    for number, host in enumerate(hosts):
        how = [word.format(node=number) for word in rendezvous]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2", *how]
        words = host.command(*torchrun, script, *command(folder, *PLAN, *overrides)[2:])
        with open(folder / f"node{number}.log", "w") as log:
            nodes.append(
                subprocess.Popen(words, cwd=REPO, env=environment(OMP_NUM_THREADS="1"), text=True, stdout=log,
                                 stderr=subprocess.STDOUT)
            )  # fmt: skip
    return nodes


def said(folder: Path, number: int) -> str:
    return (folder / f"node{number}.log").read_text()


def finish(nodes: list[subprocess.Popen[str]], folder: Path) -> list[int]:
    try:
        return [node.wait(timeout=TIMEOUT_S) for node in nodes]
    except subprocess.TimeoutExpired:
        pytest.fail(f"did not end:\n{said(folder, 0)}\n{said(folder, 1)}")


def expect_equal(folder: Path, expected: Path) -> None:
    ours, theirs = ({m["step"]: m for m in metrics(f) if "loss" in m} for f in (folder, expected))
    assert list(ours) == list(theirs) == list(range(1, STEPS + 1))
    for step, record in theirs.items():
        for key in ("loss", "grad_norm"):
            assert ours[step][key] == pytest.approx(record[key], rel=1e-9), (step, key)
    mine, other = (weights(step_folder(f, STEPS)) for f in (folder, expected))
    for name, tensor in other.items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-8, atol=1e-10, msg=name)


def test_stages_on_two_hosts_train_as_one_process_does(
    hosts: tuple[Host, Host], one_host: Path, tmp_path: Path
) -> None:
    corpus(tmp_path)
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={hosts[0].name}:29500", "--rdzv-id=pp"]
    nodes = start(hosts, meet, tmp_path, "parallel.tp=2", "parallel.pp=2")
    assert finish(nodes, tmp_path) == [0, 0], said(tmp_path, 0) + said(tmp_path, 1)
    expect_equal(tmp_path, one_host)


def test_a_cut_cable_ends_in_words_and_a_relaunch_goes_on(
    hosts: tuple[Host, Host], one_host: Path, tmp_path: Path
) -> None:
    """Replicas on two hosts; the rendezvous is a fixed one, whose launchers do not wait for each other at the end."""
    corpus(tmp_path)
    layout = ("parallel.tp=2", "parallel.dp=2", "parallel.timeout_s=8")
    meet = ["--node-rank={node}", f"--master-addr={hosts[0].name}"]
    nodes = start(hosts, [*meet, "--master-port=29501"], tmp_path, *layout)
    deadline = time.monotonic() + TIMEOUT_S
    while len(metrics(tmp_path)) < 6:
        assert time.monotonic() < deadline, said(tmp_path, 0) + said(tmp_path, 1)
        time.sleep(0.01)
    hosts[1].plug("down")
    try:
        codes = finish(nodes, tmp_path)
    finally:
        hosts[1].plug("up")
    assert len(metrics(tmp_path)) < STEPS, "it was over before the cable was cut"
    assert 0 not in codes
    for number in range(2):
        assert f"the network between {hosts[0].name} and {hosts[1].name} is down" in said(tmp_path, number)
    again = start(hosts, [*meet, "--master-port=29502"], tmp_path, *layout[:2])
    assert finish(again, tmp_path) == [0, 0], said(tmp_path, 0) + said(tmp_path, 1)
    assert "continuing from" in said(tmp_path, 0)
    expect_equal(tmp_path, one_host)
