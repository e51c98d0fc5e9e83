"""What SLURM or a shell will read is refused where they could not read it, in one line that says what to write."""

from __future__ import annotations

from typing import Any

import pytest

from engine.config import ClusterConfig
from engine.errors import ConfigError
from engine.validate import validate
from engine.validate.cluster import check_cluster, seconds
from tests.validate.test_rules import make, refusal

TORCHRUN = "cluster.kind=torchrun cluster.rendezvous=node1:29400"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["cluster.kind=pbs"], ("cluster.kind=pbs is unknown", "slurm")),
        (["cluster.nodes=0"], ("cluster.nodes=0 is too small", "1 or more")),
        (["cluster.nodes=2"], ("cluster.nodes=2 needs cluster=torchrun or cluster=slurm",)),
        (["cluster.kind=torchrun"], ("cluster.rendezvous=None is not HOST:PORT", "node1:29400")),
        (["cluster.kind=torchrun", "cluster.rendezvous=node1:99999"], ("is not HOST:PORT",)),
        (["cluster.kind=torchrun", "cluster.rendezvous=node 1:29400"], ("is not HOST:PORT",)),
        ([*TORCHRUN.split(), "cluster.nodes=2", "cluster.node=2"], ("cluster.node=2 is not one of", "0 to 1")),
        (["cluster.join_s=0"], ("cluster.join_s=0", "above 0")),
        (["cluster.binding=socket"], ("cluster.binding=socket is unknown",)),
        (["cluster.account=lab;rm"], ("cluster.account='lab;rm' is no name", "cluster.account=lab42")),
        (["cluster.partition=gpu,"], ("cluster.partition='gpu,' is no name", "cluster.partition=gpu")),
        (["cluster.interface=$(id)"], ("cluster.interface='$(id)' is no name", "ib0")),
        (["cluster.ib_hca=mlx5 0"], ("cluster.ib_hca='mlx5 0' is no name", "mlx5_0")),
        (["cluster.time=soon"], ("cluster.time='soon' is no time limit", "12:00:00")),
        (["cluster.time='1-'"], ("is no time limit",)),
        (["cluster.time='0'"], ("is no time; write cluster.time=null",)),
        (["cluster.time='5'", "cluster.warn_s=300"], ("cluster.warn_s=300 leaves nothing", "cluster.warn_s=30")),
        (["cluster.warn_s=70000"], ("cluster.warn_s=70000 is too large", "65535")),
        (["cluster.sbatch=[constraint=h100]"], ("cluster.sbatch: 'constraint=h100' is no option", "--name=value")),
        (["cluster.sbatch=[--time=1]"], ("--time=1 is written by cluster.time",)),
        (["cluster.srun=['']"], ("cluster.srun: '' is not one line",)),
        (["cluster.srun=[image.sqsh]"], ("cluster.srun: 'image.sqsh' is no option",)),
        (["cluster.python=python -u"], ("cluster.python='python -u' cannot be started",)),
        (["cluster.array=[' ']"], ("cluster.array: ' ' is not one line",)),
        (["cluster.max_requeues=-1"], ("cluster.max_requeues=-1", "0 or more")),
        (["cluster.gpus_per_node=0"], ("cluster.gpus_per_node=0", "1 or more")),
    ],
)
def test_one_line_says_what_is_wrong(overrides: list[str], words: tuple[str, ...]) -> None:
    said = refusal(*overrides)
    assert "\n" not in said
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("time", "limit"),
    [("30", 1800), ("1:30", 90), ("12:00:00", 43200), ("2-00", 172800), ("1-2:3", 93780), ("1-2:3:4", 93784),
     ("UNLIMITED", None), ("0-01", 3600)],
)  # fmt: skip
def test_time_limits_are_read_as_sbatch_reads_them(time: str, limit: int | None) -> None:
    assert seconds(time) == limit


@pytest.mark.parametrize(
    "settings",
    [
        {"account": "a\n#SBATCH --uid=0"}, {"qos": ""}, {"qos": "a\n"}, {"interface": "ib0\nrm x"}, {"time": "30\n"},
        {"prologue": ["module load cuda\nrm x"]}, {"sbatch": ["--x\nrm x"]}, {"srun": ["--x\nrm x"]},
        {"container": "env\nrm x"}, {"container": 'env "x'}, {"python": "python\n"}, {"array": ["a=1\nrm x"]},
        {"kind": "torchrun", "rendezvous": "node1\n:1"}, {"kind": "torchrun", "rendezvous": "node1:1\n"},
    ],
)  # fmt: skip
def test_nothing_brings_a_second_line_into_a_script(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        check_cluster(ClusterConfig(**settings))
    assert "\n" not in str(refused.value)


def test_what_clusters_need_is_accepted() -> None:
    validate(
        make(
            "cluster.kind=slurm", "cluster.nodes=64", "cluster.account=lab-1.a", "cluster.partition=a,b_c",
            "cluster.time=2-00:00:00", "cluster.interface==ib0,ib1", "cluster.ib_hca=^mlx5_3:1",
            "cluster.sbatch=[--constraint=h100, '--comment=a b']", "cluster.container=apptainer exec --nv 'a b.sif'",
        ),
        None,
    )  # fmt: skip
