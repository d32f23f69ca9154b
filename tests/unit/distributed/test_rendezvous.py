"""Reachable addresses of a machine, and the network interface that leads to another machine."""

from __future__ import annotations

import socket
import time

from dnabert_rm.distributed.rendezvous import (
    candidate_addresses,
    free_port,
    interface_addresses,
    interface_towards,
    reachable,
)

UNUSED_ADDRESS = "192.0.2.77"  # TEST-NET-1, which no machine uses


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


def test_the_interface_towards_an_own_address_is_the_one_that_has_it() -> None:
    for name, addresses in interface_addresses().items():
        assert interface_towards(addresses[0]) == name


def test_the_interface_that_the_user_named_comes_first() -> None:
    for name, addresses in interface_addresses().items():
        assert candidate_addresses({"GLOO_SOCKET_IFNAME": f"none,{name}"})[: len(addresses)] == addresses


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as listener:
        listener.bind(("", free_port()))
