"""Rank, world size, local rank and master address, read from launchers' environment variables. Torch-free.

DeepSpeed's launcher and torchrun set RANK, WORLD_SIZE and so on. mpirun and srun use other names. One launcher can
start another: srun or mpirun can start torchrun or `deepspeed`, and mpirun can start its daemons through srun. In these
cases several launchers set variables, and the variables of the innermost launcher are used.
"""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dnabert_rm.utils.errors import ConfigError

PORTS = range(15000, 30000)
"""Range of the ports that we choose: below the ephemeral ports that systems assign to outgoing connections."""


class LauncherError(ConfigError):
    """A launcher's environment variables are incomplete or contradict each other."""

    # Before the rendezvous each rank has to report its own error.
    on_one_rank = True


LAUNCHER_VARIABLE = "DNABERT_RM_LAUNCHER"
"""Set to "--gpus" for ranks that `dnabert-rm pretrain --gpus` has started."""


@dataclass(frozen=True)
class RankInfo:
    """Rank and world size of a process, and the address and port of rank 0.

    `master_addr` is "" and `master_port` is 0 if the launcher did not set them. The ranks then have to agree on
    an address and a port.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str = ""
    master_port: int = 0

    def environment(self) -> dict[str, str]:
        """Return the environment variables that torch and DeepSpeed read, with their values for this rank."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


@dataclass(frozen=True)
class _Variables:
    """Names of the environment variables in which a launcher sets rank, world size, local rank and local world size."""

    launcher: str
    rank: str
    size: str
    local_rank: str
    local_sizes: tuple[str, ...]


# torchrun and DeepSpeed's launcher
_EXPLICIT = _Variables(
    launcher="a launcher that sets RANK",
    rank="RANK",
    size="WORLD_SIZE",
    local_rank="LOCAL_RANK",
    local_sizes=("LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
)
_MPI = (
    _Variables(
        launcher="Open MPI",
        rank="OMPI_COMM_WORLD_RANK",
        size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_sizes=("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    _Variables(
        launcher="MVAPICH",
        rank="MV2_COMM_WORLD_RANK",
        size="MV2_COMM_WORLD_SIZE",
        local_rank="MV2_COMM_WORLD_LOCAL_RANK",
        local_sizes=("MV2_COMM_WORLD_LOCAL_SIZE",),
    ),
    # `srun --mpi=pmi2` sets PMI_RANK too, but no local rank. In this case Slurm's variables are used.
    _Variables(
        launcher="MPICH or Intel MPI",
        rank="PMI_RANK",
        size="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        local_sizes=("MPI_LOCALNRANKS",),
    ),
)


def rank_info(environ: Mapping[str, str]) -> RankInfo:
    """Return this process's rank and world size, or rank 0 of 1 if no launcher started the process.

    Raises `LauncherError` with the names of variables that are missing or contradict each other.
    """
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
    """Return the rank that MPI or Slurm sets for this process, or None if neither started the process."""
    for variables in _MPI:
        if variables.local_rank in environ and (found := _read(variables, environ)):
            return found
    return slurm_rank(environ)


def _read(variables: _Variables, environ: Mapping[str, str]) -> RankInfo | None:
    if variables.rank not in environ:
        return None
    if variables.size not in environ:
        raise LauncherError(
            f"{variables.rank} is set, but {variables.size} is not; set both, or unset {variables.rank}"
        )
    size = _number(environ, variables.size)
    local_rank = _number(environ, variables.local_rank, "0")
    local_size = next((_number(environ, name) for name in variables.local_sizes if name in environ), size)
    info = RankInfo(variables.launcher, _number(environ, variables.rank), size, local_rank, local_size)
    return _checked(info, variables)


def _checked(info: RankInfo, variables: _Variables) -> RankInfo:
    for number, size, name in (
        (info.rank, info.world_size, variables.rank),
        (info.local_rank, info.local_world_size, variables.local_rank),
    ):
        if not 0 <= number < size:
            raise LauncherError(f"{name} is {number}, but there are only ranks 0 to {size - 1}; fix the launch command")
    return info


def _number(environ: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environ.get(name, default)
    if text is None or not re.fullmatch(r"\d+", text.strip()):
        raise LauncherError(f"{name} is {text!r}, but must be a number; correct or unset the variable")
    return int(text)


def _check_nested(inner: RankInfo, outer: RankInfo) -> None:
    """Raise `LauncherError` if the ranks that two launchers set for this process contradict each other.

    `inner` comes from torchrun or DeepSpeed's launcher, and `outer` from MPI or Slurm. The outer launcher starts either
    all ranks, or one inner launcher per node. Each inner launcher then starts the ranks of its node.
    """
    if outer.world_size == 1 or (inner.rank, inner.world_size) == (outer.rank, outer.world_size):
        return
    if inner.world_size <= outer.world_size or inner.rank < outer.rank:
        raise LauncherError(
            f"RANK {inner.rank} of {inner.world_size} contradicts {outer.launcher}'s rank {outer.rank} of "
            f"{outer.world_size}; start the ranks with one launcher, or one launcher per node"
        )


def _with_master(info: RankInfo, environ: Mapping[str, str]) -> RankInfo:
    """Return `info` with the address and port of rank 0, if the launcher sets them."""
    address, port = environ.get("MASTER_ADDR", ""), environ.get("MASTER_PORT", "")
    if port and not 0 < _number(environ, "MASTER_PORT") < 65536:
        raise LauncherError(f"MASTER_PORT is {port}, but must be between 1 and 65535; correct or unset the variable")
    if info.world_size == 1 and (info.launcher != _EXPLICIT.launcher or not (address and port)):
        return info
    if info.launcher == _EXPLICIT.launcher and not (address and port):
        missing = "MASTER_PORT" if address else "MASTER_ADDR"
        raise LauncherError(
            f"RANK is set, but {missing} is not; set MASTER_ADDR and MASTER_PORT to rank 0's address and port"
        )
    info = replace(info, master_addr=address, master_port=int(port or 0))
    return _with_slurm_master(info, environ) if info.launcher == "Slurm" else info


def how_to_set(variable: str, value: str, info: RankInfo, environ: Mapping[str, str]) -> str:
    """Return an instruction for users: how to set `variable` to `value` with this rank's launcher.

    `variable` is MASTER_ADDR or MASTER_PORT. DeepSpeed's launcher and torchrun overwrite both variables. For
    these launchers, the instruction names a command-line flag instead.
    """
    flag = f"--{variable.lower()}"
    if info.launcher == _EXPLICIT.launcher and "TORCHELASTIC_RUN_ID" in environ:
        other = f"--local-addr {value}" if variable == "MASTER_ADDR" else f"--rdzv-endpoint HOST:{value}"
        return f"pass {flag.replace('_', '-')} {value} to torchrun, or {other} if it has no --master-port"
    if info.launcher == _EXPLICIT.launcher and "LOCAL_SIZE" in environ:  # only DeepSpeed sets this variable
        if environ.get(LAUNCHER_VARIABLE) == "--gpus":
            return f"set {variable}={value}"
        if "DNABERT_RM_STOP_FILE" in environ:  # `bash launch_scripts/pretrain.sh` started DeepSpeed's launcher
            return f"add {flag} {value} to DEEPSPEED_ARGS"
        return f"start with `deepspeed {flag} {value} launch_scripts/pretrain.sh …`"
    return f"set {variable}={value} for all ranks"


def free_port() -> int:
    """Return a TCP port that is free at the moment. Two runs that start together most likely get different ports."""
    # The system's random numbers, because a seed would give all runs the same port.
    for port in [*random.SystemRandom().sample(PORTS, 100), 0]:
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
            except OSError:
                continue
            return int(listener.getsockname()[1])
    raise LauncherError("this machine has no free TCP port; end programs that keep ports open")


# Slurm


def slurm_rank(environ: Mapping[str, str]) -> RankInfo | None:
    """Return the rank that srun sets for this task. Return None outside srun, or if there is only one task."""
    if "SLURM_PROCID" not in environ:
        return None
    in_step = any(name.startswith("SLURM_STEP") for name in environ)
    size_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    size = _number(environ, size_name, "1")
    if size == 1 or (not in_step and "SLURM_SUBMIT_DIR" in environ):
        # The batch script itself has SLURM_PROCID 0 and the job's SLURM_NTASKS, but no step.
        return None
    variables = _Variables("Slurm", "SLURM_PROCID", size_name, "SLURM_LOCALID", ())
    local_rank = _number(environ, "SLURM_LOCALID", "0")
    local_size = _slurm_local_size(environ, size, local_rank)
    return _checked(RankInfo("Slurm", _number(environ, "SLURM_PROCID"), size, local_rank, local_size), variables)


def _slurm_local_size(environ: Mapping[str, str], size: int, local_rank: int) -> int:
    """Return the number of Slurm tasks on this node."""
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
    return replace(info, master_addr=address, master_port=info.master_port or _slurm_port(environ))


def _slurm_port(environ: Mapping[str, str]) -> int:
    """Return a port that is the same for all tasks of a job step. Other job steps most likely get another port."""
    job, step = (
        int(environ[name]) if environ.get(name, "").isdigit() else 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")
    )
    return PORTS[(job * 7 + step) % len(PORTS)]


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list, for example "gpu[003-005,9],login1" → "gpu003"."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", nodes.strip())
    if not first:
        raise LauncherError(
            f"SLURM_STEP_NODELIST is {nodes!r}, which contains no node; set MASTER_ADDR to rank 0's node"
        )
    return re.sub(r"\[([^,\]-]*)[^\]]*\]", r"\1", first[0])


def tasks_per_node(text: str) -> list[int]:
    """Return Slurm's number of tasks on each node: "4(x2),3" → [4, 4, 3]. Return [] for any other format."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not match:
            return []
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
