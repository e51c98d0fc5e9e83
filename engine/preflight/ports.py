"""Whether ranks could meet: the port of the rendezvous, free on the host where it is."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket

from engine.config import Config
from engine.network import interface_of, is_loopback
from engine.preflight.finding import FAULT, OK, WARNING, Finding
from engine.preflight.team import Team

TORCHRUN_PORT = 29500  # torchrun's own choice


def check_ports(team: Team, config: Config, *, alone: bool) -> list[Finding]:
    """Look, from rank 0, at the port where nodes would meet: cluster.rendezvous, else torchrun's default.

    Ranks that are not `alone` have met.
    """
    if alone:
        return [Finding(*team.gather(dataclasses.astuple(_look(config)))[0])]
    met = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
    return [Finding(OK, "ports", f"all ranks have met at {met}")]


def _look(config: Config) -> Finding:
    asked = config.cluster.rendezvous
    if asked is None:
        return judge_port(TORCHRUN_PORT, asked=False)
    host, _, port = asked.rpartition(":")
    if not port.isdigit() or not _is_here(host):
        return Finding(OK, "ports", f"{asked} is not on this host: look at it there")
    return judge_port(int(port), asked=True)


def judge_port(port: int, *, asked: bool) -> Finding:
    """Say whether `port` can be listened on; in use it is a fault where it was `asked` for, else a warning."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch does: only listeners are in the way
            probe.bind(("", port))
            probe.listen()
    except OSError as error:
        why = "in use" if error.errno == errno.EADDRINUSE else error.strerror
        write = "cluster.rendezvous=HOST:PORT with" if asked else "to torchrun --master-port, or --rdzv-endpoint, with"
        text = f"port {port} is {why}: {'' if asked else 'torchrun takes it by default, '}write {write} another one"
        return Finding(FAULT if asked else WARNING, "ports", text)
    return Finding(OK, "ports", f"port {port} is free")


def _is_here(host: str) -> bool:
    try:
        address = str(socket.getaddrinfo(host, None)[0][4][0])
    except OSError:
        return False
    return is_loopback(address) or interface_of(address) is not None
