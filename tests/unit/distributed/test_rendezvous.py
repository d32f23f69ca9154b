"""Which addresses of a machine can be reached, and the interface that leads to another one."""

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

NOBODY = "192.0.2.77"  # TEST-NET-1: belongs to no machine


def test_reachable_is_where_something_listens() -> None:
    start = time.monotonic()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        addresses = ["no-such-name.invalid", "127.0.0.1", NOBODY, "127.0.0.2"]
        assert reachable(addresses, port, 0.5) == [False, True, False, False]
    assert reachable(["127.0.0.1"], port, 0.5) == [False]
    assert time.monotonic() - start < 5


def test_loopback_is_no_way_to_another_machine() -> None:
    assert interface_towards("127.0.0.1") is None
    assert "lo" not in interface_addresses()


def test_the_interface_of_an_own_address_leads_there() -> None:
    for name, addresses in interface_addresses().items():
        assert interface_towards(addresses[0]) == name


def test_the_interface_that_the_user_named_comes_first() -> None:
    for name, addresses in interface_addresses().items():
        assert candidate_addresses({"GLOO_SOCKET_IFNAME": f"none,{name}"})[: len(addresses)] == addresses


def test_a_free_port_can_be_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("", free_port()))
