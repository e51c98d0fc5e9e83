"""A job of SLURM's: its script and the whole configuration beside it, in the run folder, and its submission.

The script starts a launcher on each node, as `cluster=torchrun` does; those start the ranks, restart them, and agree on
an exit code, by which the script has the job requeued or not (launch/requeue.py).
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from engine.config import Config
from engine.errors import ConfigError, explained
from launch.environment import network

_LAUNCH = Path(__file__).resolve().parent
_CONFIG_HEAD = """\
# The whole configuration of this job, as it was submitted: conf/ may change meanwhile.
defaults:
  - schema
  - _self_
  - override hydra/job_logging: disabled
  - override hydra/hydra_logging: disabled
hydra:
  output_subdir: null
  run: {dir: .}
  job: {chdir: false}
"""
_FIRST_PORT, _PORTS = 20000, 12000  # below those that systems hand out by themselves


@dataclass(frozen=True)
class Job:
    """What is submitted: a configuration, or one for each task of an array, and the ranks of a node."""

    config: Config
    tasks: list[Config]
    ranks_per_node: int

    @property
    def folder(self) -> Path:
        """Where the script is."""
        return _run_folder(self.config) / "slurm"


def submit(job: Job, *, dry_run: bool) -> int:
    """Write the script and its configurations, submit it unless told otherwise, say where all is; return 0."""
    script = job.folder / "job.sh"
    text = render(job)
    for config in job.tasks or [job.config]:
        plain = OmegaConf.to_yaml(OmegaConf.structured(config))
        _write(_run_folder(config) / "slurm" / "job.yaml", _CONFIG_HEAD + plain)
    _write(script, text)
    if dry_run:
        print(f"trimaran: {script} is written, not submitted.")
        return 0
    if shutil.which("sbatch") is None:
        raise ConfigError(f"{script} is written, but there is no sbatch here; submit it where there is one.")
    done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.split()).removeprefix("sbatch: error: ")
        raise ConfigError(f"{script} is written, but sbatch refuses it: {said}")
    number = done.stdout.strip().partition(";")[0]
    print(f"trimaran: job {number} is submitted: {script}, its log will be beside it. scancel {number} ends it, saved.")
    return 0


def _run_folder(config: Config) -> Path:
    return Path(config.run.root) / config.run.name


def _write(path: Path, text: str) -> None:
    with explained(f"{path} cannot be written", "make room there, or write another run.name or run.root"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# -- the script ------------------------------------------------------------------------------------------------


def render(job: Job) -> str:
    """Return the script; ConfigError where a path cannot stand in it."""
    for text in (str(_run_folder(job.config)), str(Path.cwd()), sys.executable):
        if not text.isprintable():
            raise ConfigError(f"{text!r} cannot stand in a script of shell; write another run.name or run.root.")
    return "\n".join(["#!/bin/bash", *_head(job), "", *_start(job), "", *_environment(job), "", *_body(job), ""])


def _head(job: Job) -> list[str]:
    """Return what sbatch reads."""
    cluster, config = job.config.cluster, job.config
    name = re.sub(r"[^\w.=+,-]", "_", config.run.name)
    folder = str(_run_folder(config)).replace("%", "%%")
    log = f"{folder}-%a/slurm/%A_%a.log" if job.tasks else f"{folder}/slurm/%j.log"
    lines = _comment(
        f"Trains {config.run.name} on {cluster.nodes} node(s) with {job.ranks_per_node} rank(s) each. Written by "
        "launch/pretrain.py; the whole configuration is in job.yaml of the run's folder. To go on with a run that has "
        f"ended: sbatch {shlex.quote(str(job.folder / 'job.sh'))}"
    )

    def option(name: str, value: object) -> None:
        lines.append(f"#SBATCH --{name}={value}")

    option("job-name", name)
    option("nodes", cluster.nodes)
    lines += _comment("One task a node: a launcher, which starts the ranks there.")
    option("ntasks-per-node", 1)
    if cluster.cpus_per_node is None:
        lines += _comment("Whole nodes, with all of their memory.")
        lines += ["#SBATCH --exclusive", "#SBATCH --mem=0"]
    else:
        option("cpus-per-task", cluster.cpus_per_node)
    if cluster.gpus_per_node is not None:
        option("gpus-per-node", cluster.gpus_per_node)
    for field in ("account", "partition", "qos", "time"):
        if getattr(cluster, field) is not None:
            option(field, getattr(cluster, field))
    if cluster.warn_s:
        lines += _comment(
            f"{cluster.warn_s} s before its time is up, or when it is preempted where SLURM warns of that, each "
            "launcher hears SIGUSR1: the ranks finish their step, save and leave with code 75, and the job is requeued."
        )
        option("signal", f"USR1@{cluster.warn_s}")
    lines += _comment("A requeued job goes on in the same log.")
    lines += ["#SBATCH --requeue", "#SBATCH --open-mode=append", f"#SBATCH --output={shlex.quote(log)}"]
    if job.tasks:
        lines += _comment("Each task of the array is a run of its own; its number is the end of its name.")
        limit = "" if cluster.array_limit is None else f"%{cluster.array_limit}"
        option("array", f"0-{len(job.tasks) - 1}{limit}")
    return lines + [f"#SBATCH {line}" for line in cluster.sbatch]


def _start(job: Job) -> list[str]:
    """Return the lines that say which run this is, and the user's own."""
    folder = shlex.quote(str(_run_folder(job.config)))
    run, number = folder, "$SLURM_JOB_ID"
    if job.tasks:
        run, number = f'{folder}-"$SLURM_ARRAY_TASK_ID"', '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'
    lines = [f"cd {shlex.quote(str(Path.cwd()))}", f"run={run}", f"job={number}"]
    if job.config.cluster.prologue:
        lines += ["", *_comment("cluster.prologue"), *job.config.cluster.prologue]
    return lines


def _environment(job: Job) -> list[str]:
    """Return what the ranks find in their environment, with the reasons."""
    lines = _comment(
        "The nodes meet at the first one, where SLURM runs this script. The port is the job's own, and another one "
        "after a requeue."
    )
    port = f"$(({_FIRST_PORT} + (SLURM_JOB_ID * 31 + ${{SLURM_RESTART_COUNT:-0}}) % {_PORTS}))"
    lines.append(f'rendezvous="$(hostname):{port}"')
    for setting in network(job.config):
        lines += [*_comment(f"{setting.why[0].upper()}{setting.why[1:]}."), f"export {setting.name}={setting.value}"]
    ranks = job.ranks_per_node
    lines += _comment(f"The cores are shared out to {ranks} rank(s): more threads than cores spin against each other.")
    threads = f"$((SLURM_CPUS_ON_NODE > {ranks} ? SLURM_CPUS_ON_NODE / {ranks} : 1))"
    return [*lines, f"export OMP_NUM_THREADS={job.config.run.threads or threads}"]


def _body(job: Job) -> list[str]:
    """Return the lines that train, and that make of the exit code what is to be made of it."""
    cluster = job.config.cluster
    python = shlex.join([*shlex.split(cluster.container or ""), cluster.python or sys.executable])
    pretrain, requeue = (shlex.quote(str(_LAUNCH / name)) for name in ("pretrain.py", "requeue.py"))
    more = "".join(f" {shlex.quote(word)}" for word in cluster.srun)
    return [
        *_comment(
            f"A launcher on each node may use all of the job's cores there; it binds its ranks itself (cluster.binding="
            f"{cluster.binding}). That one of them ends does not end the others: they agree on how the run ended."
        ),
        "srun --ntasks-per-node=1 --kill-on-bad-exit=0 --cpu-bind=none \\",
        f'    --cpus-per-task="${{SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}}"{more} \\',
        f'    {python} {pretrain} --config-dir="$run/slurm" --config-name=job \\',
        f'    cluster.kind=torchrun cluster.ranks_per_node={job.ranks_per_node} cluster.rendezvous="$rendezvous" &',
        "step=$!",
        "",
        *_comment("scancel and preemption end this script too, were it not to wait for the ranks to save."),
        "trap 'echo \"trimaran: SLURM ends job $SLURM_JOB_ID: waiting for the ranks to save.\"' TERM",
        "trap 'kill -USR1 $step' USR1",
        'wait $step; code=$?',
        'while kill -0 $step 2>/dev/null; do wait $step; code=$?; done',
        "",
        *_comment("Asked to stop and saved, or failed after progress: it goes on, as the same job, after a requeue."),
        "trap '' TERM",
        'state=$(squeue --noheader --jobs="$job" --format="%T %r")',
        f'if {python} {requeue} run="$run" code=$code state="$state" most={cluster.max_requeues}; then',
        '    scontrol requeue "$job"',
        "fi",
        "exit $code",
    ]  # fmt: skip


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, 100)]
