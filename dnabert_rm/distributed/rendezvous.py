"""Rendezvous of a run's ranks: the address of rank 0, the network interface to use, and a shared store."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import psutil
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from dnabert_rm.distributed.launchers import LauncherError, RankInfo, free_port, how_to_set, rank_info
from dnabert_rm.utils.errors import EXIT_USER_ERROR, ConfigError, UserError

CHECK_SECONDS = 120.0
"""Longest wait for another rank between the rendezvous and the start of training."""
RESOLVE_SECONDS = 5.0
"""How long resolving the host name of rank 0 is retried, because a name server may fail for a moment."""
STUCK_SECONDS = 10.0
"""How long a rendezvous may take beyond twice its timeout."""
LONGEST_SECONDS = timedelta(days=365).total_seconds()
"""Timeout in place of an infinite one."""
EXIT_DELAY_SECONDS = 3.0
"""How long ranks that don't report an error wait before they exit. The launcher kills all ranks at the first exit."""


@dataclass(frozen=True)
class Rendezvous:
    """A completed rendezvous: this process's rank, and a store for exchanging strings before a process group exists."""

    info: RankInfo
    store: dist.Store

    def gather(self, key: str, text: str) -> list[str]:
        """Collect each rank's `text`. Return all texts in rank order on rank 0, and an empty list on other ranks."""
        with _explain_store_failure(self.info):
            self.store.set(f"{key}/{self.info.rank}", text)
            ranks = range(self.info.world_size) if self.info.rank == 0 else ()
            return [self.store.get(f"{key}/{rank}").decode() for rank in ranks]

    def broadcast(self, key: str, text: str = "") -> str:
        """Return rank 0's `text` on every rank. Rank 0 returns only after all ranks have read `text`."""
        with _explain_store_failure(self.info):
            if self.info.rank == 0:
                self.store.set(key, text)
            found = self.store.get(key).decode()
            if self.store.add(f"{key}/read", 1) == self.info.world_size:
                self.store.set(f"{key}/read by all", "")
            if self.info.rank == 0:
                self.store.wait([f"{key}/read by all"])
            return found


@contextlib.contextmanager
def _explain_store_failure(info: RankInfo) -> Iterator[None]:
    """Raise `ConfigError` in place of a store error, which means that another rank ended or does not respond."""
    try:
        yield
    except dist.DistError:
        error = ConfigError(
            f"rank {info.rank} on {socket.gethostname()}: another rank ended, or did not respond for "
            f"{CHECK_SECONDS:g} s, during the startup checks; see the output of the other ranks"
        )
        error.on_one_rank = info.local_rank == 0
        raise error from None


def join_rendezvous(seconds: float, problem: UserError | None = None) -> Rendezvous:
    """Join the rendezvous of all ranks that the launcher started.

    Sets the environment variables that torch and DeepSpeed read. Raises `ConfigError` if a rank has not
    joined after `seconds`. A wrong MASTER_ADDR raises `ConfigError` much earlier (`check_master`). If the rendezvous
    does not end at all, this process exits with `problem`, or with an error of its own if there is none.
    """
    seconds = min(seconds, LONGEST_SECONDS)
    info = rank_info(os.environ)
    if info.master_addr:
        check_master(info, os.environ)
    if info.world_size == 1:
        info = info if info.master_port else replace(info, master_addr="127.0.0.1", master_port=free_port())
    elif not (info.master_addr and info.master_port):
        info = _agree_on_master(info)
    os.environ.update(info.environment())
    set_gloo_interface(info.master_addr)
    try:
        with _exit_if_stuck(info, seconds, problem):
            store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=seconds)))
    except dist.DistError as error:
        raise _rendezvous_error(info, str(error), seconds) from None
    store.set_timeout(timedelta(seconds=CHECK_SECONDS))
    return Rendezvous(info, store)


@contextlib.contextmanager
def _exit_if_stuck(info: RankInfo, seconds: float, problem: UserError | None) -> Iterator[None]:
    """Exit this process with an error if the block takes much longer than torch's timeout of `seconds`.

    Torch's timeout does not apply once a connection is open. If another program accepts the connection at rank 0's
    port and does not answer, torch waits forever. Otherwise torch gives up after at most about twice the timeout.

    `problem` is an error that this rank has found before, and that is printed instead.
    """
    limit = 2 * seconds + STUCK_SECONDS

    def end() -> None:
        advice = how_to_set("MASTER_PORT", "PORT", info, os.environ)
        text = problem or (
            f"rank {info.rank} on {socket.gethostname()}: what listens at {info.master_addr}:{info.master_port} did "
            f"not answer within {limit:g} s, so it is probably not rank 0 but another program; {advice}"
        )
        os.write(2, f"\npretrain: error: {text}\n".encode())
        os._exit(EXIT_USER_ERROR)

    timer = threading.Timer(limit, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _rendezvous_error(info: RankInfo, reason: str, seconds: float) -> ConfigError:
    """Return a one-line error for a failed rendezvous. Only local rank 0 of each node prints the error."""
    if "address already in use" in reason.lower():
        return _port_in_use(info)
    master = f"{info.master_addr}:{info.master_port}"
    if match := re.search(r"(\d+)/\d+ clients joined", reason):
        text = (
            f"only {match[1]} of {info.world_size} ranks connected to {master} within {seconds:g} s; check why the "
            "other ranks did not start, or raise train.start_timeout_seconds"
        )
    else:
        text = (
            f"rank {info.rank} on {socket.gethostname()} found no rank 0 at {master} within {seconds:g} s; check that "
            "rank 0 has started, that MASTER_ADDR is its node, and that no firewall blocks the port"
        )
    return _error_of_node(info, text)


def _port_in_use(info: RankInfo) -> ConfigError:
    advice = how_to_set("MASTER_PORT", str(free_port()), info, os.environ)
    return _error_of_node(info, f"port {info.master_port} is in use on {socket.gethostname()}; {advice}")


def _error_of_node(info: RankInfo, text: str) -> ConfigError:
    """Return an error that only local rank 0 of each node prints.

    The other ranks wait before they return the error, because the launcher ends all ranks as soon as one exits.
    """
    if info.local_rank:
        time.sleep(EXIT_DELAY_SECONDS)
    error = ConfigError(text)
    error.on_one_rank = info.local_rank == 0
    return error


def check_master(info: RankInfo, environ: Mapping[str, str]) -> None:
    """Raise `ConfigError` if MASTER_ADDR can't be resolved, or if it is not an address of rank 0's node.

    Without this check, torch would try to connect until the rendezvous times out. Nodes without rank 0 print a warning
    if MASTER_ADDR is a loopback address, because a loopback address always leads to the node itself.
    """
    who = f"rank {info.rank} on {socket.gethostname()}"
    advice = how_to_set("MASTER_ADDR", "ADDRESS", info, environ)
    try:
        found = _resolve(info.master_addr)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        text = (
            f"{who}: the host name {info.master_addr} of rank 0's node can't be resolved ({reason}); {advice}, where "
            "ADDRESS is a name or IP address of that node"
        )
        raise _error_of_node(info, text) from None
    if info.rank == 0:
        if not _leads_here(info, found, environ):
            text = (
                f"{who}: {info.master_addr} ({found[0][1][0]}) is not an address of this node, on which rank 0 runs; "
                f"{advice}, where ADDRESS is one of {', '.join(candidate_addresses(environ)) or 'its own'}"
            )
            raise _error_of_node(info, text)
    elif info.local_rank == 0 and info.local_world_size < info.world_size and _all_loopback(found):
        print(
            f"{who}: warning: {info.master_addr} leads to this node itself; if rank 0 runs on another node, {advice}, "
            "where ADDRESS is a name or IP address of that node",
            file=sys.stderr,
        )


_Resolved = list[tuple[socket.AddressFamily, tuple[Any, ...]]]
"""The addresses of a host name: the family, and the socket address that starts with the IP address."""


def _resolve(host: str) -> _Resolved:
    """Return the addresses of `host`. Retry failures for `RESOLVE_SECONDS`, then raise `socket.gaierror`."""
    deadline = time.monotonic() + RESOLVE_SECONDS
    while True:
        try:
            return [(entry[0], entry[4]) for entry in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)]
        except socket.gaierror:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


def _all_loopback(found: _Resolved) -> bool:
    return all(ipaddress.ip_address(address[0].partition("%")[0]).is_loopback for _, address in found)


def _leads_here(info: RankInfo, found: _Resolved, environ: Mapping[str, str]) -> bool:
    """Return whether MASTER_ADDR, resolved to `found`, leads to this node. Return True if this can't be tested."""
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun listens in place of rank 0
        return True
    if any(_is_own(*entry) for entry in found):
        return True
    addresses = [address[0] for family, address in found if family == socket.AF_INET]
    if not addresses or not info.master_port:
        return True
    # A router may forward an address that no interface has, for example that of a Kubernetes service.
    with socket.socket() as listener:
        try:
            listener.bind(("", info.master_port))
        except OSError:
            raise _port_in_use(info) from None
        listener.listen()
        return any(reachable(addresses, info.master_port))


def _is_own(family: socket.AddressFamily, address: tuple[Any, ...]) -> bool:
    """Return whether an interface of this machine has `address`."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def _agree_on_master(info: RankInfo) -> RankInfo:
    """Use MPI to agree with all ranks on an address and port for rank 0. Return `info` with this address and port.

    Afterwards MPI is finalized, because all further communication uses torch.

    Raises `LauncherError` if MPI can't be used, and `ConfigError` if no address of rank 0 is reachable from all nodes.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI
    except ImportError:
        raise LauncherError(
            f"{info.launcher} started this rank, but mpi4py is missing, and the ranks need it to agree on rank 0's "
            "address; install mpi4py (pip install mpi4py), or set MASTER_ADDR and MASTER_PORT"
        ) from None
    MPI.Init()
    comm = MPI.COMM_WORLD
    if comm.size != info.world_size:
        raise LauncherError(
            f"{info.launcher} reports {info.world_size} ranks, but mpi4py reports {comm.size}; build mpi4py with "
            "the MPI of your mpirun, or set MASTER_ADDR and MASTER_PORT"
        )
    try:
        found = _try_addresses(comm, info)
    except MPI.Exception as error:
        # MPI.Finalize would wait for ranks that can't be reached.
        raise LauncherError(
            f"rank {info.rank} on {socket.gethostname()}: MPI does not reach the other ranks ({error}); select the "
            "network (mpirun --mca btl_tcp_if_include ADDRESS/BITS), or set MASTER_ADDR and MASTER_PORT"
        ) from None
    MPI.Finalize()
    for address, is_reached in zip(found.addresses, zip(*found.reached, strict=True), strict=True):
        if all(is_reached):
            return replace(info, master_addr=address, master_port=found.port)
    raise ConfigError(
        f"no address of rank 0's node ({', '.join(found.addresses) or 'it has none'}) can be reached from all nodes; "
        "set MASTER_ADDR to a reachable address, or fix the network"
    )


@dataclass(frozen=True)
class _TriedAddresses:
    """Addresses of rank 0's node, a free port on that node, and which ranks can reach which addresses."""

    addresses: list[str]
    port: int
    reached: list[list[bool]]


def _try_addresses(comm: Any, info: RankInfo) -> _TriedAddresses:
    """Listen on rank 0, and try from every node to connect to each address of rank 0's node."""
    with socket.socket() as listener:
        addresses = [info.master_addr] if info.master_addr else candidate_addresses(os.environ)
        if not info.master_addr and info.local_world_size == info.world_size:
            addresses = ["127.0.0.1"]
        if info.rank == 0:
            try:
                listener.bind(("", info.master_port))
            except OSError:
                raise _port_in_use(info) from None
            listener.listen(1024)
        addresses, port = comm.bcast((addresses, listener.getsockname()[1]) if info.rank == 0 else None)
        # One rank tries for its whole node.
        reached = comm.allgather(reachable(addresses, port) if info.local_rank == 0 else [True] * len(addresses))
    return _TriedAddresses(addresses, port, reached)


_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_CONNECT_SECONDS = 3.0


def interface_addresses() -> dict[str, list[str]]:
    """Return the IPv4 addresses of each active network interface, without loopback addresses."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = {}
    for name, entries in psutil.net_if_addrs().items():
        addresses = [entry.address for entry in entries if entry.family == socket.AF_INET]
        addresses = [address for address in addresses if not ipaddress.ip_address(address).is_loopback]
        if name in up and addresses:
            found[name] = addresses
    return found


def interface_towards(host: str) -> str | None:
    """Return the network interface on the route to `host`, or None if the route is missing or uses the loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        try:
            connection.connect((host, 9))  # sends nothing: it only looks up the route
        except OSError:
            return None
        source = connection.getsockname()[0]
    return next((name for name, addresses in interface_addresses().items() if source in addresses), None)


def candidate_addresses(environ: Mapping[str, str]) -> list[str]:
    """Return this machine's IPv4 addresses.

    The list begins with addresses of the interfaces that are set in GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME.
    """
    found = interface_addresses()
    named = [name for variable in _INTERFACE_VARIABLES for name in environ.get(variable, "").split(",")]
    return [address for name in sorted(found, key=lambda name: name not in named) for address in found[name]]


def reachable(addresses: Sequence[str], port: int, seconds: float = _CONNECT_SECONDS) -> list[bool]:
    """Return for each address whether a connection to `port` succeeds within `seconds`. Try all addresses at once."""
    connections = []
    for address in addresses:
        connection = socket.socket()
        connection.setblocking(False)
        with contextlib.suppress(OSError):  # the name can't be resolved here
            connection.connect_ex((address, port))
        connections.append(connection)
    deadline = time.monotonic() + seconds
    waiting = list(connections)
    while waiting and (left := deadline - time.monotonic()) > 0:
        for connection in select.select([], waiting, [], left)[1]:
            waiting.remove(connection)
    found = [_is_connected(connection) for connection in connections]
    for connection in connections:
        connection.close()
    return found


def _is_connected(connection: socket.socket) -> bool:
    try:
        connection.getpeername()
    except OSError:
        return False
    return True


def set_gloo_interface(master: str) -> None:
    """Set GLOO_SOCKET_IFNAME to the interface on the route to `master`, unless the variable is already set.

    By default gloo uses the address of the machine's host name, which many systems resolve to 127.0.1.1.
    """
    if "GLOO_SOCKET_IFNAME" not in os.environ and (name := interface_towards(master)):
        os.environ["GLOO_SOCKET_IFNAME"] = name
