"""Launchers of several nodes, here all on one machine: they meet, agree on every end, and start again together."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.config import ClusterConfig
from launch.nodes import Nodes, NodesError
from tests.launch.processes import environment
from tests.launch.test_ranks import LAUNCHER, TIMEOUT, wait_until

Node = subprocess.Popen[str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, what: str, port: int, restarts: int = 0) -> Node:
    return subprocess.Popen(
        [sys.executable, LAUNCHER, "1", what, str(folder), str(restarts), str(port)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def start_two(folder: Path, what: str, restarts: int = 0) -> list[Node]:
    port = free_port()
    return [start(folder, what, port, restarts) for _ in range(2)]


def finish(nodes: list[Node]) -> tuple[list[int], list[str]]:
    """Return the exit codes, and what each wrote on stderr."""
    errors = [node.communicate(timeout=TIMEOUT)[1] for node in nodes]
    return [node.returncode for node in nodes], errors


def test_ranks_are_numbered_over_the_nodes(tmp_path: Path) -> None:
    codes, errors = finish(start_two(tmp_path, "environment"))
    assert codes == [0, 0], errors
    for rank in range(2):
        assert (tmp_path / f"rank{rank}").read_text().endswith(" 2 0")  # two ranks in all, the first of its node


def test_a_death_on_one_node_starts_all_again(tmp_path: Path) -> None:
    codes, errors = finish(start_two(tmp_path, "killed-once", restarts=1))
    assert codes == [0, 0], errors
    for text in errors:
        assert "rank 1 was ended by SIGKILL" in text
        assert "restart 1 of at most 1" in text
        assert "Traceback" not in text


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("mistake-of-all", 2, "trimaran: corpus.jsonl is empty; write data.paths=[another].\n"),
        ("ladder", 17, "trimaran: 10 rollbacks are used up; look at the data.\n"),
    ],
)
def test_all_nodes_end_with_the_code_that_explains(tmp_path: Path, what: str, code: int, words: str) -> None:
    codes, errors = finish(start_two(tmp_path, what, restarts=3))
    assert codes == [code, code]
    assert errors == [words, words]


def test_a_signal_to_each_node_ends_all_as_unfinished(tmp_path: Path) -> None:
    nodes = start_two(tmp_path, "train")
    wait_until(lambda: all((tmp_path / f"pid{rank}").exists() for rank in range(2)))
    for node in nodes:
        node.send_signal(signal.SIGUSR1)
    codes, errors = finish(nodes)
    assert (codes, errors) == ([75, 75], ["", ""])


def test_a_lost_launcher_ends_the_others(tmp_path: Path) -> None:
    """Node 0 is gone with its store: the other one's ranks must not wait for it forever."""
    port = free_port()
    first = start(tmp_path, "train", port)
    wait_until(lambda: first.poll() is not None or not _is_free(port))
    second = start(tmp_path, "train", port)
    wait_until(lambda: all((tmp_path / f"pid{rank}").exists() for rank in range(2)))
    first.kill()
    first.communicate()
    _, errors = second.communicate(timeout=TIMEOUT)
    assert second.returncode == 76
    assert "node 0, at localhost:" in errors
    assert "does not answer; on every node, start the same command again" in errors


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) != 0


def cluster(port: int, **settings: int | float) -> ClusterConfig:
    return ClusterConfig(kind="torchrun", nodes=2, rendezvous=f"localhost:{port}", **{"join_s": 1.0, **settings})


def test_a_node_that_does_not_come_is_missed() -> None:
    begin = time.monotonic()
    with pytest.raises(NodesError, match=r"only 1 of cluster.nodes=2 nodes came to localhost:\d+ within"):
        Nodes(cluster(free_port()))
    assert time.monotonic() - begin < 60


def test_node_1_without_a_node_0_says_who_is_missing() -> None:
    with pytest.raises(NodesError, match=r"nobody answers at cluster.rendezvous=localhost:\d+"):
        Nodes(cluster(free_port(), node=1))


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(NodesError, match="cannot listen at port"):
            Nodes(cluster(taken.getsockname()[1], node=0))
