"""Comparison of the ranks' reports: one line per difference, which names the ranks and values. Pure."""

from __future__ import annotations

from typing import Any

from dnabert_rm.distributed.consistency import differences, name_ranks


def reports(num_ranks: int, **changes: Any) -> list[dict[str, Any]]:
    """Equal reports of ranks on nodes of two, with changes to the last rank's."""
    same = {
        "python": "3.11.7",
        "package torch": "2.13.0",
        "commit": "abc",
        "code": "0" * 64,
        "device": "gpu",
        "data fingerprint": "f" * 64,
        "config train.seed": 42,
        "sees_token": True,
    }
    found = [{**same, "host": f"node{rank // 2}"} for rank in range(num_ranks)]
    found[-1] |= {name.replace("__", " "): value for name, value in changes.items()}
    return found


def test_equal_ranks_have_no_difference() -> None:
    assert list(differences(reports(6))) == []


def test_each_difference_names_ranks_hosts_and_the_fix() -> None:
    assert list(differences(reports(6, package__torch="2.12.0"))) == [
        "torch differs: 2.13.0 on ranks 0-4 (node0, node1, node2); 2.12.0 on rank 5 (node2); install the same version "
        "on all nodes"
    ]
    (line,) = differences(reports(4, device="cpu"))
    assert line.startswith("device differs: gpu on ranks 0-2 (node0, node1); cpu on rank 3 (node1); ")
    (line,) = differences(reports(2, commit="abc+changes"))
    assert "check out the same commit" in line
    assert len(list(differences(reports(2, python="3.12.0", code="1" * 64)))) == 2


def test_a_missing_package_is_a_difference_but_an_unknown_commit_is_not() -> None:
    """Nodes without git don't know their commit; the digest of the code is compared instead."""
    assert list(differences(reports(4, commit=None))) == []
    (line,) = differences(reports(2, package__torch=None))
    assert line.startswith("torch differs: 2.13.0 on rank 0 (node0); null on rank 1 (node0)")


def test_a_mistake_of_some_ranks_is_reported_instead_of_its_consequences() -> None:
    broken = reports(4)
    broken[3] = {"problem": "data/manifest.json: no such file", "host": "node1"}
    assert list(differences(broken)) == ["data/manifest.json: no such file (on rank 3 (node1))"]
    assert list(differences([{"problem": "--lr: bad", "host": "a"}] * 3)) == ["--lr: bad"]


def test_ranks_that_do_not_see_the_run_folder_are_named() -> None:
    blind = reports(4, sees_token=False)
    blind[2]["sees_token"] = False
    (line,) = differences(blind)
    assert line.startswith("train.output: ranks 2-3 (node1) can't see what rank 0 writes")


def test_ranks_that_share_one_gpu_are_named() -> None:
    shared = reports(4)
    for report, gpu in zip(shared, ("GPU-a", "GPU-b", "GPU-c", "GPU-c"), strict=True):
        report["gpu"] = gpu
    assert list(differences(shared)) == [
        "ranks 2-3 (node1) share one GPU; start at most as many ranks per node as it has GPUs"
    ]


def test_names_of_many_ranks_are_shortened() -> None:
    hosts = [f"n{rank}" for rank in range(9)]
    assert name_ranks([3], hosts) == "rank 3 (n3)"
    assert name_ranks([0, 1, 2, 5, 7, 8], hosts) == "ranks 0-2, 5, 7-8 (n0, n1, n2 …)"
