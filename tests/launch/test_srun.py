"""What SLURM tells a task, as a rank reads it. Real steps are in tests/slurm."""

from __future__ import annotations

import pytest

from launch.srun import first_host, rank_of, tasks_on_node

TASK = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "4,2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}  # fmt: skip


def test_a_task_is_a_rank() -> None:
    rank = rank_of(TASK)
    assert int(rank.pop("MASTER_PORT")) in range(20000, 32000)
    assert rank == {
        "RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "gpu07",
    }  # fmt: skip
    assert rank_of({**TASK, "SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0"})["MASTER_ADDR"] == "localhost"


def test_every_start_of_a_job_meets_at_another_port() -> None:
    starts = [{"SLURM_STEP_ID": step, "SLURM_RESTART_COUNT": again} for step in "01" for again in "01"]
    assert len({rank_of({**TASK, **start})["MASTER_PORT"] for start in starts}) == 4


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("n1", "n1"), ("n1,n2", "n1"), ("n[01-03,7]-ib,m1", "n01-ib"), ("r[1-2]n[3-4]", "r1n3"), ("n[4,2]", "n4")],
)
def test_the_first_host_of_a_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize(("node", "tasks"), [(0, 4), (1, 4), (2, 1), (3, 2)])
def test_tasks_of_a_node(node: int, tasks: int) -> None:
    assert tasks_on_node("4(x2),1,2(x3)", node) == tasks
