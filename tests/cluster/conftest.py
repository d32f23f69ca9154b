"""Fixtures of the cluster tests: two nodes, Slurm on them, a prepared folder, and the losses of two local ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from cluster_nodes import Node, connect, find_program, write_node_files
from cluster_runs import FLAGS, losses
from cluster_slurm import Slurm
from support import random_bases, run_ranks, write_prepared


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    """Two nodes, n1 and n2, with a network between them; they end with all their processes."""
    folder = tmp_path_factory.mktemp("nodes")
    net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
    addresses = {"n1": f"{net}.1", "n2": f"{net}.2"}
    write_node_files(folder, addresses)
    found: list[Node] = []
    try:
        for name, address in addresses.items():
            found.append(Node(name, address, folder, {}))
        connect(found)
        if find_program("sshd"):
            for node in found:
                node.start_sshd()
        yield found[0], found[1]
    finally:
        for node in found:
            node.stop()


@pytest.fixture(scope="session")
def slurm(nodes: tuple[Node, Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Slurm with both nodes; its daemons end."""
    cluster = Slurm(nodes, tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(autouse=True)
def no_jobs_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Cancel the jobs that a test left, so that the next test finds both nodes idle."""
    yield
    if "slurm" in request.fixturenames:
        request.getfixturevalue("slurm").cancel_all()


@pytest.fixture(scope="session")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a short run, without its folder."""
    folder = tmp_path_factory.mktemp("data") / "prepared"
    rng = np.random.default_rng(0)
    write_prepared(folder, [[random_bases(rng, 700) for _ in range(4)] for _ in range(3)], k=4)
    return [*FLAGS, "--data", str(folder)]


@pytest.fixture(scope="session")
def local_losses(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the whole run on two local ranks."""
    folder = tmp_path_factory.mktemp("local") / "run"
    run_ranks(2, *flags, "--output", folder)
    return losses(folder)
