"""Reachable addresses of a machine, and the network interface that leads to another machine."""

from __future__ import annotations

import socket
import time

import pytest

from dnabert_rm.distributed.launchers import RankInfo, free_port
from dnabert_rm.distributed.rendezvous import (
    candidate_addresses,
    check_master,
    interface_addresses,
    interface_towards,
    reachable,
)
from dnabert_rm.utils.errors import ConfigError

UNUSED_ADDRESS = "192.0.2.77"  # TEST-NET-1, which no machine uses


@pytest.fixture
def interfaces() -> dict[str, list[str]]:
    """Addresses of this machine by network interface; skips where there is only the loopback."""
    if not (found := interface_addresses()):
        pytest.skip("no network interface but the loopback")
    return found


def test_an_address_is_reachable_if_something_listens_there() -> None:
    start = time.monotonic()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        addresses = ["no-such-name.invalid", "127.0.0.1", UNUSED_ADDRESS, "127.0.0.2"]
        assert reachable(addresses, port, 0.5) == [False, True, False, False]
    assert reachable(["127.0.0.1"], port, 0.5) == [False]
    assert time.monotonic() - start < 5


def test_the_loopback_leads_to_no_other_machine() -> None:
    assert interface_towards("127.0.0.1") is None
    assert "lo" not in interface_addresses()


def test_the_interface_towards_an_own_address_is_the_one_that_has_it(interfaces: dict[str, list[str]]) -> None:
    for name, addresses in interfaces.items():
        assert interface_towards(addresses[0]) == name


def test_the_interface_that_the_user_named_comes_first(interfaces: dict[str, list[str]]) -> None:
    for name, addresses in interfaces.items():
        assert candidate_addresses({"GLOO_SOCKET_IFNAME": f"none,{name}"})[: len(addresses)] == addresses


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as listener:
        listener.bind(("", free_port()))


def test_free_ports_of_two_runs_differ() -> None:
    assert len({free_port() for _ in range(5)}) > 1


def master(rank: int, address: str, local_rank: int = 0) -> RankInfo:
    """A rank of two nodes with two ranks each."""
    return RankInfo("Slurm", rank, 4, local_rank, 2, address, free_port())


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", *candidate_addresses({})])
def test_rank_0_may_have_any_address_of_its_node(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_master(master(0, address), {})
    assert capsys.readouterr().err == ""


def test_rank_0_reports_an_address_of_another_node() -> None:
    start = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        check_master(master(0, UNUSED_ADDRESS), {})
    assert time.monotonic() - start < 10
    assert f"{UNUSED_ADDRESS} ({UNUSED_ADDRESS}) is not an address of this node" in str(caught.value)
    assert "set MASTER_ADDR=ADDRESS" in str(caught.value)
    check_master(master(0, UNUSED_ADDRESS), {"TORCHELASTIC_USE_AGENT_STORE": "True"})
    check_master(master(2, UNUSED_ADDRESS), {})


@pytest.mark.parametrize("address", ["no-such-node.invalid", "a" * 70])
def test_one_rank_of_a_node_reports_a_name_that_cannot_be_resolved(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnabert_rm.distributed.rendezvous.RESOLVE_SECONDS", 0.1)
    monkeypatch.setattr("dnabert_rm.distributed.rendezvous.EXIT_DELAY_SECONDS", 0.5)
    for rank, local_rank in ((0, 0), (2, 0), (3, 1)):
        start = time.monotonic()
        with pytest.raises(ConfigError, match=f"rank {rank} on .* {address} .* can't be resolved") as caught:
            check_master(master(rank, address, local_rank), {})
        assert caught.value.on_one_rank == (local_rank == 0)
        assert local_rank == 0 or time.monotonic() - start > 0.5, "a launcher would kill the rank that reports it"


def test_another_node_warns_of_a_loopback_address(capsys: pytest.CaptureFixture[str]) -> None:
    """Only a warning, because both nodes may be simulated on one machine."""
    for rank, local_rank in ((1, 1), (2, 0), (3, 1)):
        check_master(master(rank, "localhost", local_rank), {})
    (line,) = capsys.readouterr().err.splitlines()
    assert "rank 2 on" in line and "localhost leads to this node itself" in line and "MASTER_ADDR" in line
