"""Which network interface reaches the other nodes of a run.

gloo binds to the address that this host's own name has. Debian and others map that name to 127.0.1.1 in /etc/hosts,
where no other node reaches it: the interface is chosen by the route to the rendezvous instead.
"""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil
from torch.distributed import Store

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
_ANY_PORT = 9  # nothing is sent to it


def local_address(host: str) -> str | None:
    """Return the address that this host has on its way to `host`; None where there is no way, or no such host."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:  # connecting a datagram socket only looks up the route
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError:
        return None


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has `address`; None where none has."""
    for name, found in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in found):
            return name
    return None


def is_loopback(address: str) -> bool:
    """Say whether an address leads back to the host that uses it."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def choose_interface(store: Store, rank: int, world: int) -> None:
    """Tell gloo the interface that reaches the other nodes, unless the user has; all ranks of a run call this.

    That is the one towards MASTER_ADDR. On the master's own node it may be the loopback: there it is the one towards a
    rank of another node, which says in `store` where it is. Nothing is told where all ranks are on one node.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    if here >= world:
        return
    address = local_address(os.environ.get("MASTER_ADDR", "localhost"))
    store.set(f"trimaran/address/{rank}", address or "")
    if address is not None and is_loopback(address):
        other = 0 if rank >= here else world - 1
        address = local_address(store.get(f"trimaran/address/{other}").decode())
    interface = None if address is None else interface_of(address)
    if interface is not None:
        os.environ.setdefault(GLOO_INTERFACE, interface)
