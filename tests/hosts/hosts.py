"""Two hosts as network namespaces: names and addresses of their own, joined by one cable (a veth pair).

Each has a hosts file as Debian writes it, in which its own name leads to 127.0.1.1 and only the other's to an address.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_ETC = Path("/etc/netns")  # `ip netns exec` lays what is in here over /etc
_ADDRESSES = ("10.77.0.1", "10.77.0.2")
_BECOME = 'hostname "$0" && exec "$@"'


@dataclass(frozen=True)
class Host:
    """One namespace; `name` is its host name too, `cable` its end of the link."""

    name: str
    address: str
    cable: str

    def command(self, *words: str) -> list[str]:
        """Return the command that runs `words` on this host."""
        return ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", _BECOME, self.name, *words]

    def plug(self, state: str) -> None:
        """Set this end of the cable up or down."""
        _ip("-n", self.name, "link", "set", self.cable, state)

    def slow_down(self, rate: str) -> None:
        """Let no more than `rate` (as tc writes it, 20mbit) out of this host."""
        shape = ["root", "tbf", "rate", rate, "burst", "16kb", "latency", "500ms"]
        _run("ip", "netns", "exec", self.name, "tc", "qdisc", "replace", "dev", self.cable, *shape)

    def pids(self) -> list[int]:
        """Return the processes that run on this host."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Yield two hosts that reach each other, and take them away whatever happens; skips where there can be none."""
    for tool in ("ip", "unshare", "hostname"):
        if shutil.which(tool) is None:
            pytest.skip(f"network namespaces need {tool}")
    token = uuid.uuid4().hex[:6]
    hosts = [Host(f"trim-{token}-{end}", _ADDRESSES[n], f"t{token}{end}") for n, end in enumerate("ab")]
    try:
        try:
            _build(hosts)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', None) or error}")
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            _remove(host)


def _build(hosts: list[Host]) -> None:
    for host, other in zip(hosts, reversed(hosts), strict=True):
        _ip("netns", "add", host.name)
        folder = _ETC / host.name
        folder.mkdir(parents=True)
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {host.name}\n{other.address} {other.name}\n")
    ends = [(host.cable, host.name) for host in hosts]
    _ip("link", "add", ends[0][0], "netns", ends[0][1], "type", "veth", "peer", "name", ends[1][0], "netns", ends[1][1])
    for host in hosts:
        _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.cable)
        _ip("-n", host.name, "link", "set", "lo", "up")
        host.plug("up")
    _run(*hosts[0].command("true"))


def _remove(host: Host) -> None:
    with contextlib.suppress(subprocess.CalledProcessError, OSError):
        for _ in range(50):  # ranks that their launcher left behind
            pids = host.pids()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not pids:
                break
            time.sleep(0.1)
        _ip("netns", "del", host.name)
    shutil.rmtree(_ETC / host.name, ignore_errors=True)


def _ip(*words: str) -> str:
    return _run("ip", *words)


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=30).stdout
