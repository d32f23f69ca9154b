"""How the ranks of a run find each other, and what they can tell each other before there is a process group."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import select
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import psutil
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from dnabert_rm.distributed.launchers import LauncherError, RankInfo, rank_info
from dnabert_rm.utils.errors import ConfigError

CHECK_SECONDS = 120.0
"""Longest wait for another rank once all have found each other and until training begins."""


@dataclass(frozen=True)
class Rendezvous:
    """Ranks that have found each other, before there is a process group: they share a store of small texts."""

    info: RankInfo
    store: dist.Store

    def gather(self, what: str, text: str) -> list[str]:
        """The texts of all ranks, on rank 0; empty on the others."""
        with _lost_rank_told(self.info):
            self.store.set(f"{what}/{self.info.rank}", text)
            ranks = range(self.info.world_size) if self.info.rank == 0 else ()
            return [self.store.get(f"{what}/{rank}").decode() for rank in ranks]

    def from_first(self, what: str, text: str = "") -> str:
        """Rank 0's text, on every rank. Rank 0 waits until all have it, so that it may end afterwards."""
        with _lost_rank_told(self.info):
            if self.info.rank == 0:
                self.store.set(what, text)
            found = self.store.get(what).decode()
            if self.store.add(f"{what}/read", 1) == self.info.world_size:
                self.store.set(f"{what}/read by all", "")
            if self.info.rank == 0:
                self.store.wait([f"{what}/read by all"])
            return found


@contextlib.contextmanager
def _lost_rank_told(info: RankInfo) -> Iterator[None]:
    try:
        yield
    except dist.DistError:
        error = ConfigError(
            f"rank {info.rank} on {socket.gethostname()}: another rank ended, or said nothing for {CHECK_SECONDS:g} s, "
            "during the checks at the start; look at what it printed"
        )
        error.on_one_rank = info.local_rank == 0
        raise error from None


def join_rendezvous(seconds: float) -> Rendezvous:
    """Find the other ranks that the launcher started; `ConfigError` where not all have come after `seconds`.

    The environment then describes this rank as torch and DeepSpeed expect it.
    """
    info = rank_info(os.environ)
    if info.world_size == 1:
        info = info if info.master_port else replace(info, master_addr="127.0.0.1", master_port=free_port())
    elif not (info.master_addr and info.master_port):
        info = _agreed_over_mpi(info)
    os.environ.update(info.environment())
    prefer_route_to(info.master_addr)
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=seconds)))
    except dist.DistError as error:
        raise _not_met(info, str(error), seconds) from None
    store.set_timeout(timedelta(seconds=CHECK_SECONDS))
    return Rendezvous(info, store)


def _not_met(info: RankInfo, reason: str, seconds: float) -> ConfigError:
    """Why the ranks have not found each other, in one line; one rank of each node says it."""
    place = f"{info.master_addr}:{info.master_port}"
    if "address already in use" in reason.lower():
        text = f"port {info.master_port} is taken on this node; set another MASTER_PORT (deepspeed --master_port)"
    elif match := re.search(r"(\d+)/\d+ clients joined", reason):
        text = (
            f"only {match[1]} of {info.world_size} ranks came to {place} within {seconds:g} s; look at why the others "
            "did not start, or raise train.start_timeout_seconds"
        )
    else:
        text = (
            f"rank {info.rank} on {socket.gethostname()} found no rank 0 at {place} within {seconds:g} s; check that "
            "it has started, that MASTER_ADDR is its node, and that no firewall lies between"
        )
    error = ConfigError(text)
    error.on_one_rank = info.local_rank == 0
    return error


def _agreed_over_mpi(info: RankInfo) -> RankInfo:
    """Where rank 0 listens, agreed on over MPI, which is left again at once: torch does the rest."""
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI
    except ImportError:
        raise LauncherError(
            f"{info.launcher} started this rank, but mpi4py is missing, by which ranks agree on rank 0's address; "
            "install it (pip install mpi4py), or set MASTER_ADDR and MASTER_PORT"
        ) from None
    MPI.Init()
    comm = MPI.COMM_WORLD
    if comm.size != info.world_size:
        raise LauncherError(
            f"{info.launcher} says {info.world_size} ranks and mpi4py {comm.size}; build mpi4py for the MPI whose "
            "mpirun you use, or set MASTER_ADDR and MASTER_PORT"
        )
    try:
        addresses, port, answers = _tried_addresses(comm, info)
    except MPI.Exception as error:
        # To finalize would wait for ranks that can't be reached.
        raise LauncherError(
            f"rank {info.rank} on {socket.gethostname()}: MPI does not reach the other ranks ({error}); name the "
            "network (mpirun --mca btl_tcp_if_include ADDRESS/BITS), or set MASTER_ADDR and MASTER_PORT"
        ) from None
    MPI.Finalize()
    for address, seen in zip(addresses, zip(*answers, strict=True), strict=True):
        if all(seen):
            return replace(info, master_addr=address, master_port=port)
    raise ConfigError(
        f"no address of rank 0's node ({', '.join(addresses) or 'it has none'}) can be reached from all nodes; set "
        "MASTER_ADDR to one that can, or mend the network"
    )


def _tried_addresses(comm: Any, info: RankInfo) -> tuple[list[str], int, list[list[bool]]]:
    """Addresses of rank 0, a port that is free there, and which of the addresses each rank can reach."""
    with socket.socket() as listener:
        addresses = [info.master_addr] if info.master_addr else candidate_addresses(os.environ)
        if not info.master_addr and info.local_world_size == info.world_size:
            addresses = ["127.0.0.1"]
        if info.rank == 0:
            listener.bind(("", info.master_port))
            listener.listen(1024)
        addresses, port = comm.bcast((addresses, listener.getsockname()[1]) if info.rank == 0 else None)
        # One rank of a node speaks for it.
        answers = comm.allgather(reachable(addresses, port) if info.local_rank == 0 else [True] * len(addresses))
    return addresses, port, answers


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
