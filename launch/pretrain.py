"""Train a model.

    python launch/pretrain.py [group=option ...] [key=value ...]      starts tp*pp*cp*dp ranks on this machine
    python launch/pretrain.py cluster=torchrun cluster.nodes=N cluster.rendezvous=HOST:PORT ...    on each of N nodes
    python launch/pretrain.py cluster=slurm cluster.nodes=N ...       submits a job; with --dry-run, only writes it
    python launch/pretrain.py -m optim.lr=1e-3,3e-4 [...]             a sweep: a run for each point (launch/sweeps)
    torchrun [...] launch/pretrain.py [...]                           uses the ranks it is given
    srun --ntasks=N [...] python launch/pretrain.py [...]             the same

Exit codes (launch/codes.py): 0 done, or asked to stop by Ctrl-C and saved; 75 asked to stop by SIGTERM, SIGHUP or
SIGUSR1 and saved, so start it again to go on; 2 a mistake that one line explains; 17 stopped by the stability ladder;
76 a rank died; 124 a rank hung; 130 a second Ctrl-C; 1 anything else. After 1, 76 and 124 the ranks are started again
first, run.max_restarts times, as long as that brings the run further.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.config import Config
from engine.errors import ConfigError
from engine.stop_request import StopRequest
from launch import srun
from launch.codes import DIED, DONE, UNFINISHED, USER_ERROR, Outcome
from launch.rank import hung, is_rank, is_started_by_launcher, leave, run_rank
from launch.settings import compose_more, repeat_flags, run_with_config

DRY_RUN = "--dry-run"


def main() -> int:
    """Be a rank where one was started, else validate and start the ranks, or submit a job that does."""
    if not _has_working_folder():
        print("trimaran: the folder this was started in is gone; cd to one that exists.", file=sys.stderr)
        return USER_ERROR
    given = [argument for argument in sys.argv[1:] if argument != DRY_RUN]
    if is_rank():
        return run_with_config(_work, given)
    dry_run = DRY_RUN in sys.argv[1:]
    task = partial(_launch, flags=repeat_flags(given), dry_run=dry_run)
    return run_with_config(task, given, None if dry_run else check_point)


def _has_working_folder() -> bool:
    """Libraries that torch loads later end the process where there is none."""
    try:
        return bool(Path.cwd())
    except FileNotFoundError:
        return False


def _work(config: Config, overrides: list[str]) -> Outcome:
    """Be a rank. Under srun, nobody but the ranks can say that they were asked to stop."""
    under_srun = srun.is_task() and not is_started_by_launcher()
    stop = StopRequest()

    def train() -> int:
        from engine.trainer import train

        code = train(config, on_hang=hung, stop=stop)
        return UNFINISHED if code == DONE and under_srun and stop.by_machine else code

    return Outcome(leave(run_rank(train)))


def _launch(config: Config, overrides: list[str], flags: list[str], dry_run: bool) -> Outcome:
    if srun.is_task() and config.cluster.kind == "local":
        srun.become_rank()
        return _work(config, overrides)
    here, ranks = _check(config)
    if config.cluster.kind == "slurm":
        from launch.sbatch import Job, submit

        tasks = [_task(config, number, overrides, flags) for number in range(len(config.cluster.array))]
        return Outcome(submit(Job(config, tasks, here), dry_run=dry_run))
    where = f"on each of {config.cluster.nodes} nodes" if config.cluster.kind == "torchrun" else "on this machine"
    if dry_run:
        print(f"trimaran: {here} rank(s) would start {where}, {ranks} in all.")
        return Outcome(DONE)
    return _start(config, here, [str(Path(__file__).resolve()), *flags, *overrides])


def _check(config: Config) -> tuple[int, int]:
    """Return how many ranks start on this node, and in all; ConfigError for a configuration that cannot run."""
    # Here, not above: mistakes are answered before what takes a second to load is needed.
    import torch

    from engine.validate import validate

    here, ranks = ranks_to_start(config, gpus=0 if config.run.device == "cpu" else torch.cuda.device_count())
    validate(config, ranks)
    return here, ranks


def check_point(config: Config, here: bool) -> None:
    """Raise ConfigError for a point of a sweep that cannot run, on this machine (`here`) or wherever it will be."""
    from engine.validate import validate

    if config.cluster.kind != "local":
        raise ConfigError(
            f"cluster.kind={config.cluster.kind} starts no point of a sweep; write hydra/launcher=submitit_slurm to "
            "send each point to SLURM, or cluster.array for an array of jobs of several nodes."
        )
    if here:
        _check(config)
    else:
        validate(config, None)


def _start(config: Config, here: int, words: list[str]) -> Outcome:
    """Start `here` ranks on this machine, together with other nodes' where there are some."""
    from launch.environment import network
    from launch.nodes import Nodes, NodesError
    from launch.ranks import start_ranks

    nodes = None
    if config.cluster.kind == "torchrun":
        try:
            nodes = Nodes(config.cluster)
        except NodesError as error:
            print(f"trimaran: {error}", file=sys.stderr)
            return Outcome(DIED)
    return start_ranks(
        [sys.executable, *words], here, Path(config.run.root) / config.run.name, config.run.max_restarts,
        nodes=nodes, binding=config.cluster.binding, settings=network(config),
    )  # fmt: skip


def _task(config: Config, number: int, overrides: list[str], flags: list[str]) -> Config:
    """Return the configuration of a task of an array."""
    from engine.validate import validate

    name = f"{config.run.name}-{number}"
    task = compose_more([*overrides, *config.cluster.array[number].split(), f"run.name='{name}'"], flags)
    validate(task, ranks_to_start(task, gpus=0)[1])
    return task


def ranks_to_start(config: Config, gpus: int) -> tuple[int, int]:
    """Return how many ranks start on a node, and in all; `gpus` are this machine's, 0 where they are not to be used.

    On one machine the layout says it: parallel.dp=null fills the GPUs, or is 1 on a CPU.
    """
    parallel, cluster = config.parallel, config.cluster
    replica = parallel.tp * parallel.pp * parallel.cp
    if cluster.kind == "local":
        ranks = replica * (parallel.dp or max(1, gpus // max(1, replica)))
        if 0 < gpus < ranks:
            raise ConfigError(
                f"parallel.tp*pp*cp*dp = {ranks} ranks, but this machine has {gpus} GPUs; start on more machines with "
                "cluster=torchrun or cluster=slurm, or write run.device=cpu."
            )
        return ranks, ranks
    here = cluster.ranks_per_node or cluster.gpus_per_node or gpus
    if here:
        return here, here * cluster.nodes
    ranks = replica * (parallel.dp or 1)
    if ranks % cluster.nodes:
        raise ConfigError(
            f"cluster.nodes={cluster.nodes} does not divide the parallel.tp*pp*cp*dp = {ranks} ranks; write "
            "cluster.ranks_per_node, or another parallel.dp."
        )
    return ranks // cluster.nodes, ranks


if __name__ == "__main__":
    sys.exit(main())
