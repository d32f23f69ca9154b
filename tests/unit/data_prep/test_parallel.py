"""Choice of workers: child processes or MPI ranks, by the variables that a launcher sets."""

from __future__ import annotations

import operator
import os
import sys
from concurrent.futures import Executor

import pytest
from support import launcher_variables

from data_prep.parallel import open_executor, run_all
from dnabert_rm.utils.errors import ConfigError


def processes_of(executor: Executor) -> set[int]:
    """Return the processes that do the work. A spawned worker need not import this file for it."""
    return {process for _, process in run_all(executor, operator.call, [os.getpid] * 4)}


@pytest.fixture(autouse=True)
def _no_launcher_and_no_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in launcher_variables():
        monkeypatch.delenv(name, raising=False)
    for name in ("mpi4py", "mpi4py.MPI", "mpi4py.futures"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"PMI_SIZE": "1", "PMI_RANK": "0"},
        {"OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0"},
        {"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"PMI_SIZE": "1", "PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "4"},
        {"SLURM_STEP_NUM_TASKS": "4"},
    ],
)
def test_one_rank_has_worker_processes_and_needs_no_mpi4py(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's plugins set the variables of MPI for `srun -n 1 -c 16`, too."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with open_executor(2) as executor:
        assert executor is not None
        assert os.getpid() not in processes_of(executor)
    with open_executor(1) as executor:
        assert executor is not None
        assert processes_of(executor) == {os.getpid()}


@pytest.mark.parametrize(
    "variables",
    [
        {"PMI_SIZE": "8", "PMI_RANK": "1"},
        {"OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"PMIX_RANK": "0"},
        {"PMIX_RANK": "3", "SLURM_STEP_NUM_TASKS": "4"},
    ],
)
def test_several_ranks_need_mpi4py(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="mpi4py is missing; run pip install"), open_executor(2):
        pass
