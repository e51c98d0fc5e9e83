"""What ranks find in their environment: a user's own choice first, the reasons for ours in words."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch.numa.binding import AffinityMode

from engine.config import Config
from engine.device import set_threads
from launch import agent, rank
from launch.environment import defaults, network


def test_the_network_is_told_to_both_libraries() -> None:
    config = Config()
    plain = {setting.name for setting in network(config)}
    config.cluster.interface, config.cluster.ib_hca, config.parallel.timeout_s = "ib0", "mlx5_0", 90.0
    told = {setting.name: setting.value for setting in network(config)}
    assert told.keys() - plain == {"NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_IB_HCA"}
    assert (told["NCCL_SOCKET_IFNAME"], told["GLOO_SOCKET_IFNAME"], told["NCCL_IB_HCA"]) == ("ib0", "ib0", "mlx5_0")
    assert told["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"] == "150"  # after ours
    assert all(setting.why for setting in network(config))


def test_a_users_choice_stays_and_ours_goes_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIAL_CHOSEN", "theirs")
    with defaults({"TRIAL_CHOSEN": "ours", "TRIAL_OPEN": "ours"}, {"TRIAL_FORCED": "1"}):
        assert [os.environ[f"TRIAL_{name}"] for name in ("CHOSEN", "OPEN", "FORCED")] == ["theirs", "ours", "1"]
    assert [key for key in os.environ if key.startswith("TRIAL_")] == ["TRIAL_CHOSEN"]


@pytest.mark.parametrize(
    ("cores", "ranks", "shares"),
    [(8, 2, [[0, 1, 2, 3], [4, 5, 6, 7]]), (5, 2, [[0, 1], [2, 3, 4]]), (2, 3, [[0], [0], [1]])],
)
def test_ranks_share_the_cores_out(
    monkeypatch: pytest.MonkeyPatch, cores: int, ranks: int, shares: list[list[int]]
) -> None:
    bound: list[list[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, chosen: bound.append(chosen))
    for local_rank in range(ranks):
        monkeypatch.setenv(rank.BINDING, "cores")
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        assert rank.run_rank(lambda: 0) == 0
    assert bound == shares


@pytest.mark.parametrize(("binding", "threads"), [("none", 2), ("cores", 8)])
def test_a_bound_rank_has_all_the_cores_that_it_sees(
    monkeypatch: pytest.MonkeyPatch, binding: str, threads: int
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setenv(rank.BINDING, binding)
    set_threads(0, 4)
    assert chosen == [threads]


@pytest.mark.parametrize("numa", [False, True])
def test_torch_binds_ranks_beside_their_gpus_when_asked(monkeypatch: pytest.MonkeyPatch, numa: bool) -> None:
    specs: list[Any] = []

    class Recorder:
        def __init__(self, spec: Any, logs: Any, **_: object) -> None:
            specs.append(spec)

        def run(self) -> None:
            """Start nothing."""

    monkeypatch.setattr(agent, "LocalElasticAgent", Recorder)
    agent.Agent(["true"], 2, "/tmp", agent.alone(), numa=numa).join()
    options = specs[0].numa_options
    assert (options is not None and options.affinity_mode == AffinityMode.NODE) == numa
