"""Where a process stands among the ranks of a run, from the variables that launchers set. Pure, torch-free.

DeepSpeed's launcher and torchrun set RANK, WORLD_SIZE …; mpirun and srun have names of their own. When several are
there, the innermost launcher counts: torchrun and `deepspeed` start ranks below srun or mpirun, and mpirun starts its
daemons through srun.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dnabert_rm.utils.errors import ConfigError

PORTS = range(15000, 30000)
"""Where MASTER_PORT lies when a Slurm job's number gives it: below the ports that systems hand out by themselves."""


class LauncherError(ConfigError):
    """The variables of a launcher are incomplete or contradict each other."""

    # Before the ranks have found each other, each can only speak for itself.
    on_one_rank = True


@dataclass(frozen=True)
class RankInfo:
    """One process among those of a run. `master_addr` "" or `master_port` 0: the launcher leaves it to the ranks."""

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str = ""
    master_port: int = 0

    def environment(self) -> dict[str, str]:
        """The variables by which torch and DeepSpeed know the same."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


@dataclass(frozen=True)
class _Names:
    """What a launcher calls rank, world size, local rank and local world size."""

    launcher: str
    rank: str
    size: str
    local_rank: str
    local_sizes: tuple[str, ...]


_EXPLICIT = _Names(
    "a launcher that sets RANK", "RANK", "WORLD_SIZE", "LOCAL_RANK", ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
)  # torchrun's and DeepSpeed's
_MPI = (
    _Names(
        "Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    _Names(
        "MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK",
        ("MV2_COMM_WORLD_LOCAL_SIZE",),
    ),
    # `srun --mpi=pmi2` sets PMI_RANK too, but not the local rank: then Slurm's own variables count.
    _Names("MPICH or Intel MPI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", ("MPI_LOCALNRANKS",)),
)  # fmt: skip


def rank_info(environ: Mapping[str, str]) -> RankInfo:
    """This process among the others; without a launcher, the only one. `LauncherError` names what contradicts."""
    explicit, outer = _read(_EXPLICIT, environ), _outer_rank(environ)
    if explicit and outer:
        _check_nested(explicit, outer)
    found = explicit or outer
    if (
        "WORLD_SIZE" in environ
        and not explicit
        and _number(environ, "WORLD_SIZE") != (found.world_size if found else 1)
    ):
        raise LauncherError("WORLD_SIZE is set, but RANK is not; set both, or unset WORLD_SIZE")
    if not found:
        return RankInfo("no launcher", 0, 1, 0, 1)
    return _with_master(found, environ)


def _outer_rank(environ: Mapping[str, str]) -> RankInfo | None:
    """What MPI or Slurm says."""
    for names in _MPI:
        if names.local_rank in environ and (found := _read(names, environ)):
            return found
    return slurm_rank(environ)


def _read(names: _Names, environ: Mapping[str, str]) -> RankInfo | None:
    if names.rank not in environ:
        return None
    if names.size not in environ:
        raise LauncherError(f"{names.rank} is set, but {names.size} is not; set both, or unset {names.rank}")
    size = _number(environ, names.size)
    local_rank = _number(environ, names.local_rank, "0")
    local_size = next((_number(environ, name) for name in names.local_sizes if name in environ), size)
    return _checked(RankInfo(names.launcher, _number(environ, names.rank), size, local_rank, local_size), names)


def _checked(info: RankInfo, names: _Names) -> RankInfo:
    for number, size, name in (
        (info.rank, info.world_size, names.rank),
        (info.local_rank, info.local_world_size, names.local_rank),
    ):
        if not 0 <= number < size:
            raise LauncherError(f"{name} is {number}, but there are only ranks 0 to {size - 1}; mend the launch")
    return info


def _number(environ: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environ.get(name, default)
    if text is None or not re.fullmatch(r"\d+", text.strip()):
        raise LauncherError(f"{name} is {text!r}, but must be a number; mend or unset it")
    return int(text)


def _check_nested(inner: RankInfo, outer: RankInfo) -> None:
    """`LauncherError` unless `inner` can be a rank that a launcher started as process `outer` of several.

    An outer launcher either starts the ranks themselves, or one launcher a node that starts those of its node.
    """
    if outer.world_size == 1 or (inner.rank, inner.world_size) == (outer.rank, outer.world_size):
        return
    if inner.world_size <= outer.world_size or inner.rank < outer.rank:
        raise LauncherError(
            f"RANK {inner.rank} of {inner.world_size} contradicts {outer.launcher}'s rank {outer.rank} of "
            f"{outer.world_size}; start the ranks with one launcher, or one launcher a node"
        )


def _with_master(info: RankInfo, environ: Mapping[str, str]) -> RankInfo:
    """Add where rank 0 listens, as far as it is known."""
    address, port = environ.get("MASTER_ADDR", ""), environ.get("MASTER_PORT", "")
    if port and not 0 < _number(environ, "MASTER_PORT") < 65536:
        raise LauncherError(f"MASTER_PORT is {port}, but must be between 1 and 65535")
    if info.world_size == 1 and (info.launcher != _EXPLICIT.launcher or not (address and port)):
        return info
    if info.launcher == _EXPLICIT.launcher and not (address and port):
        missing = "MASTER_PORT" if address else "MASTER_ADDR"
        raise LauncherError(f"RANK is set, but {missing} is not; set it to the {missing[7:].lower()} of rank 0")
    info = replace(info, master_addr=address, master_port=int(port or 0))
    return _with_slurm_master(info, environ) if info.launcher == "Slurm" else info


# Slurm


def slurm_rank(environ: Mapping[str, str]) -> RankInfo | None:
    """What srun says to a task; None outside of a task of several."""
    if "SLURM_PROCID" not in environ:
        return None
    in_step = any(name.startswith("SLURM_STEP") for name in environ)
    size_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    size = _number(environ, size_name, "1")
    if size == 1 or (not in_step and "SLURM_SUBMIT_DIR" in environ):
        # The batch script itself has SLURM_PROCID 0 and the job's SLURM_NTASKS, but no step.
        return None
    names = _Names("Slurm", "SLURM_PROCID", size_name, "SLURM_LOCALID", ())
    local_rank = _number(environ, "SLURM_LOCALID", "0")
    local_size = _slurm_local_size(environ, size, local_rank)
    return _checked(RankInfo("Slurm", _number(environ, "SLURM_PROCID"), size, local_rank, local_size), names)


def _slurm_local_size(environ: Mapping[str, str], size: int, local_rank: int) -> int:
    """Tasks on this node."""
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        if name in environ:
            counts = tasks_per_node(environ[name])
            node = _number(environ, "SLURM_NODEID", "0")
            if sum(counts) == size and node < len(counts):
                return counts[node]
    if "SLURM_NTASKS_PER_NODE" in environ:
        return max(local_rank + 1, min(size, _number(environ, "SLURM_NTASKS_PER_NODE")))
    nodes = _number(environ, "SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES", "1"))
    return max(local_rank + 1, size // max(1, nodes))


def _with_slurm_master(info: RankInfo, environ: Mapping[str, str]) -> RankInfo:
    address = info.master_addr
    if not address:
        names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
        nodes = next((environ[name] for name in names if environ.get(name)), "")
        if not nodes:
            raise LauncherError("SLURM_PROCID is set, but SLURM_STEP_NODELIST is not; set MASTER_ADDR to rank 0's node")
        address = first_host(nodes)
    job, step = (
        int(environ[name]) if environ.get(name, "").isdigit() else 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")
    )
    return replace(info, master_addr=address, master_port=info.master_port or PORTS[(job * 7 + step) % len(PORTS)])


def first_host(nodes: str) -> str:
    """The first name of a Slurm list of nodes: "gpu[003-005,9],login1" → "gpu003"."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", nodes.strip())
    if not first:
        raise LauncherError(f"SLURM_STEP_NODELIST is {nodes!r}, which names no node; set MASTER_ADDR to rank 0's node")
    return re.sub(r"\[([^,\]-]*)[^\]]*\]", r"\1", first[0])


def tasks_per_node(text: str) -> list[int]:
    """Slurm's short form of the tasks on each node: "4(x2),3" → [4, 4, 3]; empty where it is another text."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not match:
            return []
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
