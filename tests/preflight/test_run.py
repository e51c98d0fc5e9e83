"""The whole preflight on real ranks: nothing found where nothing is wrong, and faults of the configuration."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch.distributed.distributed_c10d import _get_default_store

from engine.config import Config
from engine.device import Device
from engine.preflight.clocks import check_clocks
from engine.preflight.finding import FAULT, OK, Finding
from engine.preflight.run import preflight
from engine.preflight.team import Team
from tests.ranks import run_ranks

CPU = Device(torch.device("cpu"), "gloo")
Told = list[tuple[str, str, str]]


def look(config: Config) -> Told:
    told: list[Finding] = []
    faults = preflight(config, CPU, told.append, alone=False)
    assert faults == sum(finding.level == FAULT for finding in told)
    return [(finding.level, finding.topic, finding.text) for finding in told]


def several(rank: int, world: int, root: str) -> dict[str, Told]:
    """A sound configuration of tp=2, one for other ranks, and one whose model is too large for any machine."""
    sound = Config()
    sound.run.root, sound.run.device, sound.parallel.tp = f"{root}/runs", "cpu", 2
    told = {"sound": look(sound)}
    sound.parallel.pp = 2
    told["layout"] = look(sound)
    sound.parallel.pp, sound.model.hidden, sound.model.ffn = 1, 1 << 18, 1 << 19
    told["large"] = look(sound)
    return told


def skewed(rank: int, world: int, ahead_s: float) -> list[str]:
    """Take the two ranks for hosts, of which the second has another time."""
    team, store = Team(_get_default_store(), rank, world), _get_default_store()
    team.hosts = ["a", "b"]
    found = check_clocks(team, store, clock=lambda: time.time() + rank * ahead_s)
    return [f"{finding.level}: {finding.text}" for finding in found]


def test_sound_ranks_pass_and_what_does_not_fit_is_a_fault(tmp_path: Path) -> None:
    first, second = run_ranks(2, several, str(tmp_path))
    assert [level for level, *_ in first["sound"]] == [level for level, *_ in second["sound"]]
    assert not any(level == FAULT for level, *_ in first["sound"]), first["sound"]
    topics = {topic for _, topic, _ in first["sound"]}
    assert topics == {
        "versions", "extension", "devices", "ports", "clocks", "folder", "layout", "groups", "links", "disk", "memory",
    }  # fmt: skip
    faults = [text for level, topic, text in first["layout"] if level == FAULT]
    assert len(faults) == 1
    assert "= 4 does not divide the 2 ranks" in faults[0]
    found = {topic for level, topic, _ in first["large"] if level == FAULT}
    assert found == {"disk", "memory"}, first["large"]
    assert not (tmp_path / "runs").exists(), "something was left behind"


def test_a_clock_that_is_ahead_or_behind_is_named() -> None:
    ahead = run_ranks(2, skewed, 100.0)
    assert ahead[0] == ahead[1]
    assert ahead[0][0].startswith("fault: the clock of rank 1 on b is 100.")
    assert "ahead of that of rank 0 on a" in ahead[0][0]
    assert run_ranks(2, skewed, -5.0)[0][0].startswith("warning: the clock of rank 1 on b is ")


def test_equal_clocks_are_ok() -> None:
    assert run_ranks(2, skewed, 0.0)[0][0].startswith(OK)
