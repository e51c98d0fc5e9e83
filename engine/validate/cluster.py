"""Rules of the section `cluster`. What a shell or SLURM will read is held to what they can read."""

from __future__ import annotations

import re
import shlex

from engine.config import ClusterConfig
from engine.errors import ConfigError

_NAME = r"[A-Za-z0-9_.@:+-]+"
_WORDS = {  # pattern of a value, and an example of one
    "account": (_NAME, "lab42"),
    "partition": (rf"{_NAME}(,{_NAME})*", "gpu"),
    "qos": (_NAME, "normal"),
    "interface": (r"[=^]?[A-Za-z0-9_.,@-]+", "ib0"),
    "ib_hca": (r"[=^]?[A-Za-z0-9_.,:-]+", "mlx5_0,mlx5_1"),
}
_TIME = re.compile(r"(\d+)|(\d+):(\d+)(?::(\d+))?|(\d+)-(\d+)(?::(\d+))?(?::(\d+))?")
_OWN = {  # options of sbatch that the script writes itself, by the field they come from
    "job-name": "run.name", "nodes": "cluster.nodes", "ntasks-per-node": "cluster.ranks_per_node",
    "account": "cluster.account", "partition": "cluster.partition", "qos": "cluster.qos", "time": "cluster.time",
    "signal": "cluster.warn_s", "gpus-per-node": "cluster.gpus_per_node", "cpus-per-task": "cluster.cpus_per_node",
    "array": "cluster.array", "output": "run.root", "open-mode": "run.root", "requeue": "cluster.max_requeues",
}  # fmt: skip


def check_cluster(cluster: ClusterConfig) -> None:
    """Raise ConfigError for the first rule that `cluster` breaks; single numbers are checked with all others."""
    for name, (pattern, example) in _WORDS.items():
        value = getattr(cluster, name)
        if value is not None and not re.fullmatch(pattern, value):
            raise ConfigError(f"cluster.{name}={value!r} is no name; write one such as cluster.{name}={example}.")
    for name in ("prologue", "sbatch", "srun", "array"):
        for line in getattr(cluster, name):
            if not line.strip() or not line.isprintable():
                raise ConfigError(f"cluster.{name}: {line!r} is not one line of text; write each line as an entry.")
    for name in ("container", "python"):
        _check_command(name, getattr(cluster, name))
    if cluster.kind == "local" and cluster.nodes > 1:
        raise ConfigError(f"cluster.nodes={cluster.nodes} needs cluster=torchrun or cluster=slurm, or cluster.nodes=1.")
    if cluster.kind == "torchrun":
        check_rendezvous(cluster.rendezvous)
        if cluster.node is not None and cluster.node >= cluster.nodes:
            raise ConfigError(
                f"cluster.node={cluster.node} is not one of cluster.nodes={cluster.nodes}; write 0 to "
                f"{cluster.nodes - 1}, a different one on each node."
            )
    _check_options(cluster)
    limit_s = None if cluster.time is None else seconds(cluster.time)
    if limit_s is not None and cluster.warn_s >= limit_s:
        raise ConfigError(
            f"cluster.warn_s={cluster.warn_s} leaves nothing of cluster.time={cluster.time}; write "
            f"cluster.warn_s={limit_s // 10} or more time."
        )


def check_rendezvous(text: str | None) -> tuple[str, int]:
    """Return host and port of "HOST:PORT", or raise ConfigError."""
    host, _, port = (text or "").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")  # as addresses of version 6 are written
    if not re.fullmatch(r"[A-Za-z0-9_.:%-]+", host) or not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 65536:
        raise ConfigError(
            f"cluster.rendezvous={text!r} is not HOST:PORT; write the first node's, such as "
            "cluster.rendezvous=node1:29400."
        )
    return host, int(port)


def seconds(time: str) -> int | None:
    """Return the seconds of a time limit as sbatch reads it, None for no limit; ConfigError where it would not."""
    if time.upper() in ("UNLIMITED", "INFINITE"):
        return None
    found = _TIME.fullmatch(time)
    if found is None:
        raise ConfigError(
            f"cluster.time={time!r} is no time limit; write minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS, such as "
            "cluster.time=12:00:00."
        )
    minutes, first, second, third, days, hours, day_minutes, day_seconds = (int(part or 0) for part in found.groups())
    if days or found[5]:
        total = ((days * 24 + hours) * 60 + day_minutes) * 60 + day_seconds
    elif found[4]:
        total = (first * 60 + second) * 60 + third
    else:
        total = (minutes or first) * 60 + second
    if total == 0:
        raise ConfigError(f"cluster.time={time!r} is no time; write cluster.time=null for the partition's limit.")
    return total


def _check_command(name: str, text: str | None) -> None:
    if text is None:
        return
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    if not words or not text.isprintable() or (name == "python" and len(words) > 1):
        raise ConfigError(f"cluster.{name}={text!r} cannot be started; write the words of a command, on one line.")


def _check_options(cluster: ClusterConfig) -> None:
    for name, options in (("sbatch", cluster.sbatch), ("srun", cluster.srun)):
        for option in options:
            if not option.startswith("-"):
                raise ConfigError(f"cluster.{name}: {option!r} is no option; write it as --name=value.")
    for option in cluster.sbatch:
        own = _OWN.get(option.lstrip("-").partition("=")[0].strip())
        if own is not None:
            raise ConfigError(f"cluster.sbatch: {option} is written by {own}; write that instead.")
