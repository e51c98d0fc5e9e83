"""A private SLURM on this machine: its own munge, ports and files, nothing outside of one folder.

Two slurmd stand for two nodes, `n1` and `n2`; each claims four processors, whatever the machine has. Needs root, and
Debian's slurm-wlm and munge. The daemons are children of this process and end with it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

NODES = ("n1", "n2")
CPUS = 4
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")

# No cgroups and no accounting: a container has neither. KillWait is the time from SIGTERM to SIGKILL; on a loaded
# machine a run needs some of it to save.
_CONF = """\
ClusterName=trial
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MailProg=/bin/true
ReturnToService=2
JobRequeue=1
KillWait=60
MinJobAge=900
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Return why no SLURM can be started here; None when one can."""
    missing = [name for name in _PROGRAMS if _find(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "slurmd has to be started by root"


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Slurm:
    """A running cluster. `environment` makes SLURM's commands, and ours, talk to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN"))}
        self.environment = {**kept, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self, seconds: float) -> None:
        """Start the daemons and wait until both nodes are idle; TimeoutError with the end of the logs."""
        folder = self.folder
        (folder / "state").mkdir(parents=True)
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        ports = _free_ports(1 + len(NODES))
        host = socket.gethostname().partition(".")[0]
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} RealMemory=2000"
            for name, port in zip(NODES, ports[1:], strict=True)
        ]
        (folder / "slurm.conf").write_text(
            _CONF.format(host=host, controller=ports[0], folder=folder, nodes="\n".join(lines))
        )
        self._start(  # --force: the folder above may be one that everybody may write to
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.sock",
            f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed",
        )  # fmt: skip
        deadline = time.monotonic() + seconds
        while not (folder / "munge.sock").exists():
            self._check(deadline)
        self._start("slurmctld", "-D", "-f", f"{folder}/slurm.conf")
        for name in NODES:
            self._start("slurmd", "-D", "-f", f"{folder}/slurm.conf", "-N", name)
        while self.ask("sinfo", "-h", "-N", "-o", "%T").split() != ["idle"] * len(NODES):
            self._check(deadline)

    def _start(self, name: str, *arguments: str) -> None:
        program = _find(name)
        assert program is not None
        bound = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        with open(self.folder / f"{name}.out", "ab") as output:
            self._daemons.append(
                subprocess.Popen(
                    [*bound, program, *arguments], env=self.environment, cwd="/", stdin=subprocess.DEVNULL,
                    stdout=output, stderr=output,
                )
            )  # fmt: skip

    def _check(self, deadline: float) -> None:
        if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self._daemons):
            logs = [path.read_text(errors="replace")[-300:] for path in sorted(self.folder.glob("*.log"))]
            raise TimeoutError("SLURM did not come up: " + " | ".join(" ".join(log.split()) for log in logs))
        time.sleep(0.1)

    def stop(self) -> None:
        """End every job, then the daemons."""
        self.ask("scancel", "--signal=KILL", "--full", "--user=root")
        self.ask("scancel", "--user=root")
        deadline = time.monotonic() + 10
        while self.ask("squeue", "-h") and time.monotonic() < deadline:
            time.sleep(0.1)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    # -- jobs --------------------------------------------------------------------------------------------------

    def ask(self, *command: str) -> str:
        """Return what a command of SLURM's prints; empty where it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False, cwd=self.folder
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def field(self, job: str, name: str) -> str:
        """Return a field of `scontrol show job`, such as JobState or ExitCode; empty for a job that is gone."""
        words = self.ask("scontrol", "show", "job", "--oneliner", job).split()
        return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), "")

    def wait(self, job: str, *states: str, seconds: float = 150.0) -> str:
        """Wait until the job's state is one of `states` and return it; AssertionError when it is not in time."""
        deadline = time.monotonic() + seconds
        while (state := self.field(job, "JobState")) not in states:
            assert time.monotonic() < deadline, f"job {job} is {state}, not {' or '.join(states)}: {self.ask('squeue')}"
            time.sleep(0.2)
        return state

    def hurry(self, job: str, times: int = 1, seconds: float = 150.0) -> None:
        """Wait until a job is requeued for the `times`-th time and start it; SLURM would let it wait two minutes."""
        deadline = time.monotonic() + seconds
        while self.field(job, "Restarts") != str(times):
            assert time.monotonic() < deadline, f"job {job} is not requeued: {self.field(job, 'JobState')}"
            time.sleep(0.2)
        self.wait(job, "PENDING", seconds=seconds)
        time.sleep(2)  # credentials of the same second are those that the requeue has revoked
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")


@contextlib.contextmanager
def running(folder: Path, seconds: float = 60.0) -> Iterator[Slurm]:
    """A cluster that lives as long as the block; its ports are free ones, and tried again where they were taken."""
    for attempt in range(3):
        slurm = Slurm(folder / str(attempt))
        try:
            slurm.start(seconds / 3)
            break
        except TimeoutError:
            slurm.stop()
            if attempt == 2:
                raise
    try:
        yield slurm
    finally:
        slurm.stop()


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
