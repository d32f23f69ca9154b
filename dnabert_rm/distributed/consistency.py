"""Do all ranks agree? Versions, code, data, configuration, device, one shared run folder: told in one line if not.

The ranks compare notes through rank 0's store, before a process group, a model or a GPU's memory is made.
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
from dnabert_rm.distributed.device import resolve_precision, take_device
from dnabert_rm.distributed.rendezvous import Rendezvous, join_rendezvous
from dnabert_rm.utils.errors import ConfigError, UserError
from dnabert_rm.utils.system_info import code_commit, package_version

PACKAGES = ("dnabert_rm", "torch", "deepspeed", "transformers", "numpy")
MAY_DIFFER = {"data.path", "data.cache_dir", "train.output", "train.offload_dir"}
"""Fields that a node may have of its own: where its disks are mounted. The fingerprint and the token stand for them."""
TOKEN_SECONDS = 5.0
"""How long ranks look for rank 0's token: a network file system may show a new file late."""

PROBLEM_SECONDS = 120.0
"""How long a rank with a mistake waits for the others, to tell them, before it tells the user by itself."""
MEND = {
    "python": "use one environment on all nodes",
    "package": "install the same version on all nodes",
    "commit": "check out the same commit on all nodes",
    "code": "copy the same checkout to all nodes",
    "data": "give all nodes the same prepared folder",
    "config": "give all ranks the same flags and files",
    "device": "start ranks only on nodes of one kind, or set DS_ACCELERATOR=cpu on all",
}
Facts = dict[str, Any]


class InconsistentRanksError(ConfigError):
    """The ranks of a run don't agree on what they run."""


def check_consistency(meeting: Rendezvous, config: RunConfig, fingerprint: str) -> None:
    """Raise the same error on every rank, told by rank 0, unless all of them can train together.

    `fingerprint` is the data's. Rank 0 makes the run folder, and a file in it that is removed again.
    """
    if meeting.info.world_size == 1:
        return
    run = Path(config.train.output)
    with shared_token(meeting, run) as sees_token:
        _settle(meeting, {**own_facts(meeting, config, fingerprint), "sees_token": sees_token})


def abort_all_ranks(problem: UserError) -> None:
    """End all ranks of the run because of a mistake that this one has found, and maybe others; always raises."""
    try:
        meeting = join_rendezvous(PROBLEM_SECONDS)
    except ConfigError:
        problem.on_one_rank = True
        raise problem from None
    meeting.from_first("token")
    _settle(meeting, {"problem": str(problem)})


def _settle(meeting: Rendezvous, facts: Facts) -> None:
    """Compare all ranks' facts on rank 0; the first difference ends all of them."""
    notes = [json.loads(text) for text in meeting.gather("facts", json.dumps({**facts, "host": socket.gethostname()}))]
    if difference := meeting.from_first("difference", next(differences(notes), "")):
        raise InconsistentRanksError(difference)


def own_facts(meeting: Rendezvous, config: RunConfig, fingerprint: str) -> Facts:
    """What this rank has to have in common with the others; a JSON object of names and values."""
    facts: Facts = {"python": platform.python_version()}
    facts |= {f"package {name}": package_version(name) for name in PACKAGES}
    facts |= {"commit": code_commit(), "code": code_digest(), "data fingerprint": fingerprint}
    facts |= {
        f"config {section}.{name}": value
        for section, values in config.to_dict().items()
        for name, value in values.items()
        if f"{section}.{name}" not in MAY_DIFFER
    }
    facts["config DeepSpeed settings"] = load_ds_config(config.train.ds_config)[1]
    try:
        device = take_device(meeting.info)
        facts["device"] = device.type
        if device.type == "cuda":
            facts["gpu"] = str(torch.cuda.get_device_properties(device).uuid)
        facts["config train.precision"] = resolve_precision(config.train.precision)
    except UserError as error:
        facts["problem"] = str(error)
    return facts


def code_digest() -> str:
    """SHA-256 of this package's source files: it tells checkouts apart where there is no git, or no commit."""
    folder, found = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return found.hexdigest()


@contextlib.contextmanager
def shared_token(meeting: Rendezvous, run: Path) -> Iterator[bool]:
    """Whether this rank sees in its run folder a file that rank 0 writes to its own; on all ranks together.

    The file is removed when the block is left, and a folder that was made for it too, if the block fails.
    """
    token, is_new = "", False
    if meeting.info.rank == 0:
        token, is_new = f".shared-{uuid.uuid4().hex}", not run.exists()
        run.mkdir(parents=True, exist_ok=True)
        (run / token).touch()
    try:
        yield _appears(run, meeting.from_first("token", token))
    except ConfigError:
        if is_new:
            (run / token).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody else has begun to write there
                run.rmdir()
        raise
    finally:
        if token:
            (run / token).unlink(missing_ok=True)


def _appears(run: Path, token: str) -> bool:
    """Whether a file is in the run folder, or comes within `TOKEN_SECONDS`; true for no file."""
    deadline = time.monotonic() + TOKEN_SECONDS
    while token and token not in _names_in(run):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _names_in(run: Path) -> list[str]:
    """What the run folder holds. Listing it and its parent makes a network file system ask its server anew."""
    try:
        os.listdir(run.absolute().parent)
        return os.listdir(run)
    except OSError:
        return []


def differences(notes: Sequence[Facts]) -> Iterator[str]:
    """One line for each thing that the ranks, whose facts are `notes` in their order, don't have in common."""
    hosts = [note["host"] for note in notes]
    problems = [note.get("problem") for note in notes]
    for problem in dict.fromkeys(filter(None, problems)):
        ranks = [rank for rank, text in enumerate(problems) if text == problem]
        yield problem if len(ranks) == len(notes) else f"{problem} (on {name_ranks(ranks, hosts)})"
    if any(problems):
        return
    for name in dict.fromkeys(name for note in notes for name in note):
        values = {rank: note.get(name) for rank, note in enumerate(notes)}
        if name == "commit":  # not known where git is not installed; the digest of the code stands for it
            values = {rank: value for rank, value in values.items() if value}
        if name in ("host", "gpu", "sees_token") or len({json.dumps(value) for value in values.values()}) < 2:
            continue
        shown = name.removeprefix("package ").removeprefix("config ")
        yield f"{shown} differs: {_values(values, hosts)}; {MEND[name.split()[0]]}"
    owners: dict[str, int] = {}
    for rank, gpu in enumerate(note.get("gpu") for note in notes):
        if gpu and (first := owners.setdefault(gpu, rank)) != rank:
            yield f"{name_ranks([first, rank], hosts)} share one GPU; start at most as many ranks a node as it has GPUs"
    if blind := [rank for rank, note in enumerate(notes) if not note["sees_token"]]:
        yield (
            f"train.output: {name_ranks(blind, hosts)} can't see what rank 0 writes to its run folder; name one folder "
            "on a disk that all nodes share"
        )


def _values(values: dict[int, Any], hosts: Sequence[str]) -> str:
    """ "A on rank 0 (a); B on ranks 1-3 (b)", at most three of them; long values are cut."""
    groups: dict[str, list[int]] = {}
    for rank, value in values.items():
        groups.setdefault(value if isinstance(value, str) else json.dumps(value), []).append(rank)
    shown = [f"{_cut(text)} on {name_ranks(ranks, hosts)}" for text, ranks in list(groups.items())[:3]]
    return "; ".join([*shown, "…"] if len(groups) > len(shown) else shown)


def _cut(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def name_ranks(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """ "rank 3 (node b)", "ranks 0-2, 5 (a, b)"; at most three hosts are named."""
    stretches: list[list[int]] = []
    for rank in ranks:
        if stretches and stretches[-1][-1] == rank - 1:
            stretches[-1].append(rank)
        else:
            stretches.append([rank])
    shown = ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in stretches)
    coordinates = list(dict.fromkeys(hosts[rank] for rank in ranks))
    named = ", ".join(coordinates[:3]) + (" …" if len(coordinates) > 3 else "")
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {shown} ({named})"
