"""Planted faults, each found by the check that is for it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from engine.config import Config
from engine.preflight.devices import judge_cores, judge_gpus
from engine.preflight.disk import check_disk, checkpoint_bytes, judge_speed
from engine.preflight.finding import FAULT, OK, WARNING
from engine.preflight.folder import check_folder, judge_folder, run_folder
from engine.preflight.groups import judge_groups
from engine.preflight.links import Link, judge_links
from engine.preflight.memory import available, judge_memory
from engine.preflight.ports import judge_port
from engine.preflight.team import Team
from engine.preflight.versions import judge_extension, judge_versions

HOSTS = ["a", "a", "b"]
PLACES = ["rank 0 on a", "rank 1 on a", "rank 2 on b"]
GPU: dict[str, Any] = {"name": "H100", "total": 80 << 30, "used": 1 << 30}


def test_other_versions_on_one_host_are_named() -> None:
    same = {"torch": "2.13.0", "Python": "3.11.7"}
    assert [finding.level for finding in judge_versions([same] * 3, HOSTS)] == [OK]
    (found,) = judge_versions([same, same, {**same, "torch": "2.12.1"}], HOSTS)
    assert (found.level, "torch: 2.13.0 on a; 2.12.1 on b" in found.text) == (FAULT, True)


def test_an_extension_that_is_missing_everywhere_is_slow_and_on_one_host_a_fault() -> None:
    assert judge_extension([None, None, None], HOSTS).level == OK
    everywhere = judge_extension(["No module named 'engine._C'"] * 3, HOSTS)
    assert (everywhere.level, "build_ext" in everywhere.text) == (WARNING, True)
    somewhere = judge_extension([None, None, "undefined symbol"], HOSTS)
    assert somewhere.level == FAULT
    assert "cannot be loaded on b, but elsewhere it can (undefined symbol)" in somewhere.text


@pytest.mark.parametrize(
    ("change", "level", "word"),
    [
        ({}, OK, "3 x H100, 80 GiB each"),
        ({"uuid": "0"}, FAULT, "have a GPU together"),
        ({"used": 30 << 30}, FAULT, "up to 30 GiB of their GPU in use by others"),
        ({"gpu_ecc_errors": 3}, FAULT, "memory errors"),
        ({"gpu_temperature_c": 91}, WARNING, "85 C or more"),
        ({"name": "A100"}, WARNING, "H100 on rank 0 on a, rank 1 on a; A100 on rank 2 on b"),
    ],
)
def test_gpus(change: dict[str, Any], level: str, word: str) -> None:
    gpus = [{**GPU, "uuid": str(number)} for number in range(3)]
    (found,) = judge_gpus([*gpus[:2], {**gpus[2], **change}], PLACES)
    assert (found.level, word in found.text) == (level, True), found


def test_more_ranks_than_cores() -> None:
    assert judge_cores([2, 2, 1], HOSTS)[0].level == OK
    (found,) = judge_cores([1, 1, 4], HOSTS)
    assert (found.level, "2 ranks for 1 core(s) on a" in found.text) == (WARNING, True)


@pytest.mark.parametrize(("asked", "level"), [(True, FAULT), (False, WARNING)])
def test_an_occupied_port(asked: bool, level: str) -> None:
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        found = judge_port(listener.getsockname()[1], asked=asked)
    assert (found.level, "is in use" in found.text) == (level, True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {made.stderr.decode()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_little_disk_and_a_read_only_one(small_disk: Path) -> None:
    team, config = Team(dist.HashStore(), 0, 1), Config()
    with run_folder(small_disk / "runs" / "mine") as trouble:
        assert [finding.level for finding in check_folder(team, small_disk / "runs" / "mine", trouble)] == [OK]
        room, speed = check_disk(team, config, small_disk / "runs" / "mine", 100_000)
    assert (room.level, speed.level) == (FAULT, OK)
    assert "3 checkpoints of 1.14 MiB" in room.text
    assert list(small_disk.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with run_folder(small_disk / "runs") as trouble:
        (found,) = check_folder(team, small_disk / "runs", trouble)
    assert (found.level, "Read-only file system" in found.text) == (FAULT, True)


def test_a_folder_that_is_not_shared() -> None:
    (found,) = judge_folder(Path("runs"), [None] * 3, [[2], [2], [0, 1]], PLACES)
    assert found.level == FAULT
    assert "rank 0 on a does not see what rank 2 on b wrote" in found.text


def test_a_checkpoint_that_takes_long_is_worth_a_word() -> None:
    config = Config()
    config.precision.dtype = "bf16"
    assert checkpoint_bytes(config, 1000) == 12_000
    assert judge_speed(1e6, 10**9).level == WARNING
    assert judge_speed(1e9, 10**9).level == OK


def test_little_memory(tmp_path: Path) -> None:
    levels = [judge_memory(need, 100, "a").level for need in (50, 95, 101)]
    assert levels == [OK, WARNING, FAULT]
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert available([tmp_path]) == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert available([tmp_path]) > 3000


@pytest.mark.parametrize(
    ("rate", "latency_s", "levels"),
    [(1e9, 1e-4, [OK]), (3e8, 1e-4, [WARNING]), (1e8, 0.05, [WARNING, WARNING]), (1e7, 1e-4, [FAULT])],
)
def test_a_slow_link_among_fast_ones(rate: float, latency_s: float, levels: list[str]) -> None:
    found = judge_links(
        "dp", [Link(0, 1, 1e-5, 1e9), Link(1, 2, latency_s, rate)] * 2 + [Link(0, 1, 1e-5, 1e9)], PLACES
    )
    assert [finding.level for finding in found] == levels
    assert levels == [OK] or "between rank 1 on a and rank 2 on b" in found[0].text


def test_a_group_that_fails_or_sums_wrong_is_named() -> None:
    told: list[dict[str, str | float]] = [
        {"tp": 1e-3, "dp": "Timed out"},
        {"tp": 1e-3},
        {"dp": "the sum is 1 and not 3"},
    ]
    (found,) = judge_groups(told, PLACES)
    assert (found.level, "over dp of rank 0 on a, rank 2 on b: Timed out" in found.text) == (FAULT, True)
    assert judge_groups([{}, {"world": 1e-3}], PLACES)[0].level == OK
