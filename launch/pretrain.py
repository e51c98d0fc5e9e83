"""Train a model.

    python launch/pretrain.py [group=option ...] [key=value ...]      starts tp*pp*cp*dp ranks on this machine
    python launch/pretrain.py -m optim.lr=1e-3,3e-4 [...]             a sweep: a run for each point (launch/sweeps)
    torchrun [...] launch/pretrain.py [...]                           uses the ranks it is given

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
from launch.codes import USER_ERROR, Outcome
from launch.rank import hung, is_rank, leave, run_rank
from launch.settings import repeat_flags, run_with_config


def main() -> int:
    """Be a rank where one was started, else validate and start the ranks."""
    if not _has_working_folder():
        print("trimaran: the folder this was started in is gone; cd to one that exists.", file=sys.stderr)
        return USER_ERROR
    if is_rank():
        return run_with_config(_work, sys.argv[1:])
    # A job of a sweep may be started by another program, with other arguments.
    return run_with_config(partial(_launch, repeat_flags(sys.argv[1:])), sys.argv[1:], check)


def _has_working_folder() -> bool:
    """Libraries that torch loads later end the process where there is none."""
    try:
        return bool(Path.cwd())
    except FileNotFoundError:
        return False


def _work(config: Config, overrides: list[str]) -> Outcome:
    def train() -> int:
        from engine.trainer import train

        return train(config, on_hang=hung)

    return Outcome(leave(run_rank(train)))


def _launch(flags: list[str], config: Config, overrides: list[str]) -> Outcome:
    ranks = check(config)
    # Here, not above: mistakes are answered before what takes a second to load is needed.
    from launch.ranks import start_ranks

    command = [sys.executable, str(Path(__file__).resolve()), *flags, *overrides]
    folder = Path(config.run.root) / config.run.name
    return start_ranks(command, ranks, folder, config.run.max_restarts)


def check(config: Config, here: bool = True) -> int:
    """Return how many ranks a configuration needs, on this machine or (0: not known) elsewhere; or ConfigError."""
    import torch

    from engine.validate import validate

    if not here:
        validate(config, None)
        return 0
    ranks = ranks_to_start(config, gpus=0 if config.run.device == "cpu" else torch.cuda.device_count())
    validate(config, ranks)
    return ranks


def ranks_to_start(config: Config, gpus: int) -> int:
    """Return how many ranks the layout needs on one machine; parallel.dp=null fills the GPUs, or is 1 on a CPU."""
    parallel = config.parallel
    replica = parallel.tp * parallel.pp * parallel.cp
    ranks = replica * (parallel.dp or max(1, gpus // max(1, replica)))
    if 0 < gpus < ranks:
        raise ConfigError(
            f"parallel.tp*pp*cp*dp = {ranks} ranks, but this machine has {gpus} GPUs; start on more machines with "
            "torchrun, or write run.device=cpu."
        )
    return ranks


if __name__ == "__main__":
    sys.exit(main())
