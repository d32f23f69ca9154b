"""Which of a node's network interfaces leads to rank 0, and which address of rank 0 the others can reach."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import time
from collections.abc import Mapping, Sequence

import psutil

_LISTED_FIRST = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_CONNECT_SECONDS = 3.0


def interface_addresses() -> dict[str, list[str]]:
    """IPv4 addresses of each interface of this machine that is up, loopback left out."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = {}
    for name, entries in psutil.net_if_addrs().items():
        addresses = [entry.address for entry in entries if entry.family == socket.AF_INET]
        addresses = [address for address in addresses if not ipaddress.ip_address(address).is_loopback]
        if name in up and addresses:
            found[name] = addresses
    return found


def interface_towards(host: str) -> str | None:
    """The interface whose address this machine uses to reach `host`; None for the loopback or where none is known."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # sends nothing: it only asks for the route
        except OSError:
            return None
        source = probe.getsockname()[0]
    return next((name for name, addresses in interface_addresses().items() if source in addresses), None)


def candidate_addresses(environ: Mapping[str, str]) -> list[str]:
    """This machine's IPv4 addresses, those of the interface that the user named for collectives first."""
    found = interface_addresses()
    wanted = [name for variable in _LISTED_FIRST for name in environ.get(variable, "").split(",")]
    return [address for name in sorted(found, key=lambda name: name not in wanted) for address in found[name]]


def free_port() -> int:
    """A TCP port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def reachable(addresses: Sequence[str], port: int, seconds: float = _CONNECT_SECONDS) -> list[bool]:
    """Whether something listens at each of the addresses; all are tried at once, for so many seconds."""
    tries = []
    for address in addresses:
        probe = socket.socket()
        probe.setblocking(False)
        with contextlib.suppress(OSError):  # a name that is not known here
            probe.connect_ex((address, port))
        tries.append(probe)
    deadline = time.monotonic() + seconds
    waiting = list(tries)
    while waiting and (left := deadline - time.monotonic()) > 0:
        for probe in select.select([], waiting, [], left)[1]:
            waiting.remove(probe)
    answers = [_is_connected(probe) for probe in tries]
    for probe in tries:
        probe.close()
    return answers


def _is_connected(probe: socket.socket) -> bool:
    try:
        probe.getpeername()
    except OSError:
        return False
    return True


def prefer_route_to(master: str) -> None:
    """Have gloo listen on the interface that leads to `master`, unless GLOO_SOCKET_IFNAME says which.

    Left alone gloo takes the address of the machine's own name, which many systems give as 127.0.1.1.
    """
    if "GLOO_SOCKET_IFNAME" not in os.environ and (name := interface_towards(master)):
        os.environ["GLOO_SOCKET_IFNAME"] = name
