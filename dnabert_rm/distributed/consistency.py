"""Check that all ranks have the same package versions, code, data, configuration, device type and run folder.

Each rank sends a report to rank 0 through the store of the rendezvous. This happens before a process group or model is
made and before any GPU memory is used. If the reports differ, all ranks end, and rank 0 prints the first difference in
one line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from dnabert_rm.config import RunConfig
from dnabert_rm.config.deepspeed_config import load_ds_config
from dnabert_rm.distributed.device import resolve_precision, select_device
from dnabert_rm.distributed.rendezvous import Rendezvous, join_rendezvous
from dnabert_rm.utils.errors import ConfigError, UserError
from dnabert_rm.utils.system_info import code_commit, package_version

PACKAGES = ("dnabert_rm", "torch", "deepspeed", "transformers", "numpy")
MAY_DIFFER = {"data.path", "data.cache_dir", "train.output", "train.offload_dir"}
"""Fields that may differ between nodes: paths of mounted disks. The fingerprint and the token file check these."""
TOKEN_SECONDS = 5.0
"""How long ranks wait for rank 0's token file, because a network file system may show a new file late."""
PROBLEM_SECONDS = 120.0
"""How long a rank with an error waits for the other ranks before it reports the error alone."""
ADVICE = {
    "python": "use one environment on all nodes",
    "package": "install the same version on all nodes",
    "commit": "check out the same commit on all nodes",
    "code": "copy the same checkout to all nodes",
    "data": "give all nodes the same prepared folder",
    "config": "give all ranks the same flags and files",
    "device": "start ranks only on nodes of one kind, or set DS_ACCELERATOR=cpu on all",
}
Report = dict[str, Any]
"""A rank's versions, settings and devices by name, as a JSON object. The first word of a name is a key of `ADVICE`."""


class InconsistentRanksError(ConfigError):
    """The ranks of a run have different code, data, settings or devices."""


def check_consistency(rendezvous: Rendezvous, config: RunConfig, fingerprint: str) -> None:
    """Raise the same error on every rank unless all ranks can train together. Only rank 0 prints the error.

    `fingerprint` is the fingerprint of the data. Rank 0 creates the run folder and a temporary file in it, to test
    whether all ranks share the folder.
    """
    if rendezvous.info.world_size == 1:
        return
    run = Path(config.train.output)
    with shared_token(rendezvous, run) as sees_token:
        _compare_ranks(rendezvous, {**rank_report(rendezvous, config, fingerprint), "sees_token": sees_token})


def abort_all_ranks(problem: UserError) -> None:
    """End all ranks, because this rank can't train and has the error `problem`. Always raises an error.

    All ranks raise the same error, which comes from the lowest rank with an error. If the rendezvous fails, this rank
    raises `problem`.
    """
    try:
        rendezvous = join_rendezvous(PROBLEM_SECONDS, problem)
    except ConfigError:
        problem.on_one_rank = True
        raise problem from None
    rendezvous.broadcast("token")
    _compare_ranks(rendezvous, {"problem": str(problem)})


def _compare_ranks(rendezvous: Rendezvous, report: Report) -> None:
    """Let rank 0 compare the reports of all ranks. Every rank raises an error for the first difference found."""
    texts = rendezvous.gather("facts", json.dumps({**report, "host": socket.gethostname()}))
    reports = [json.loads(text) for text in texts]
    if difference := rendezvous.broadcast("difference", next(differences(reports), "")):
        raise InconsistentRanksError(difference)


def rank_report(rendezvous: Rendezvous, config: RunConfig, fingerprint: str) -> Report:
    """Return the values that must be equal on all ranks, and this rank's GPU id, which must be unique."""
    report: Report = {"python": platform.python_version()}
    report |= {f"package {name}": package_version(name) for name in PACKAGES}
    report |= {"commit": code_commit(), "code": code_digest(), "data fingerprint": fingerprint}
    report |= {
        f"config {section}.{name}": value
        for section, values in config.to_dict().items()
        for name, value in values.items()
        if f"{section}.{name}" not in MAY_DIFFER
    }
    report["config DeepSpeed settings"] = load_ds_config(config.train.ds_config)[1]
    try:
        device = select_device(rendezvous.info)
        report["device"] = device.type
        if device.type == "cuda":
            report["gpu"] = str(torch.cuda.get_device_properties(device).uuid)
        report["config train.precision"] = resolve_precision(config.train)
    except UserError as error:
        report["problem"] = str(error)
    return report


def code_digest() -> str:
    """Return the SHA-256 of this package's source files. The hash also covers uncommitted changes."""
    folder = Path(__file__).resolve().parents[1]
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return found.hexdigest()


@contextlib.contextmanager
def shared_token(rendezvous: Rendezvous, run: Path) -> Iterator[bool]:
    """Yield whether this rank sees a temporary file that rank 0 writes to the run folder.

    A rank that does not see the file does not share rank 0's run folder. All ranks must call this. The file is removed
    after the block. If the block raises `ConfigError`, a run folder that was created for the file is removed as well.
    """
    token = ""
    is_new = False
    if rendezvous.info.rank == 0:
        token = f".shared-{uuid.uuid4().hex}"
        is_new = not run.exists()
        run.mkdir(parents=True, exist_ok=True)
        (run / token).touch()
    try:
        yield _appears(run, rendezvous.broadcast("token", token))
    except ConfigError:
        if is_new:
            (run / token).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another process has begun to write there
                run.rmdir()
        raise
    finally:
        if token:
            (run / token).unlink(missing_ok=True)


def _appears(run: Path, token: str) -> bool:
    """Return whether the file named `token` is in `run` or appears there within `TOKEN_SECONDS`.

    Return True if `token` is "", which means that rank 0 wrote no file.
    """
    deadline = time.monotonic() + TOKEN_SECONDS
    while token and token not in _names_in(run):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _names_in(run: Path) -> list[str]:
    """Return the file names in `run`.

    The parent folder is read first, so that a network file system refreshes its cached list of both folders.
    """
    try:
        os.listdir(run.absolute().parent)
        return os.listdir(run)
    except OSError:
        return []


def differences(reports: Sequence[Report]) -> Iterator[str]:
    """Yield a message for each error in the ranks' `reports`.

    If no report contains an error, yield a message for each difference between the reports.
    """
    hosts = [report["host"] for report in reports]
    problems = [report.get("problem") for report in reports]
    for problem in dict.fromkeys(filter(None, problems)):
        ranks = [rank for rank, text in enumerate(problems) if text == problem]
        yield problem if len(ranks) == len(reports) else f"{problem} (on {name_ranks(ranks, hosts)})"
    if any(problems):
        return
    yield from _different_values(reports, hosts)
    owners: dict[str, int] = {}
    for rank, gpu in enumerate(report.get("gpu") for report in reports):
        if gpu and (first := owners.setdefault(gpu, rank)) != rank:
            yield (
                f"{name_ranks([first, rank], hosts)} share one GPU; start at most as many ranks per node as it has GPUs"
            )
    if blind := [rank for rank, report in enumerate(reports) if not report["sees_token"]]:
        yield (
            f"train.output: {name_ranks(blind, hosts)} can't see what rank 0 writes to its run folder; choose a folder "
            "on a disk that all nodes share"
        )


def _different_values(reports: Sequence[Report], hosts: Sequence[str]) -> Iterator[str]:
    for name in dict.fromkeys(name for report in reports for name in report):
        values = {rank: report.get(name) for rank, report in enumerate(reports)}
        if name == "commit":  # unknown where git is not installed, but the code digest is compared as well
            values = {rank: value for rank, value in values.items() if value}
        if name in ("host", "gpu", "sees_token") or len({json.dumps(value) for value in values.values()}) < 2:
            continue
        shown = name.removeprefix("package ").removeprefix("config ")
        yield f"{shown} differs: {_values(values, hosts)}; {ADVICE[name.split()[0]]}"


def _values(values: dict[int, Any], hosts: Sequence[str]) -> str:
    """Return up to three values with ranks and hosts: "A on rank 0 (node1); B on ranks 1-3 (node2)".

    Long values are shortened.
    """
    groups: dict[str, list[int]] = {}
    for rank, value in values.items():
        groups.setdefault(value if isinstance(value, str) else json.dumps(value), []).append(rank)
    shown = [f"{_shorten(text)} on {name_ranks(ranks, hosts)}" for text, ranks in list(groups.items())[:3]]
    return "; ".join([*shown, "…"] if len(groups) > len(shown) else shown)


def _shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def name_ranks(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Return ranks and at most three of their hosts as text: "rank 3 (node1)" or "ranks 0-2, 5 (node1, node2)"."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][-1] == rank - 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    shown = ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)
    names = list(dict.fromkeys(hosts[rank] for rank in ranks))
    named = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {shown} ({named})"
