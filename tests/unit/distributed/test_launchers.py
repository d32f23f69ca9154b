"""Rank, world size, node and rank 0's address from the variables of every launcher; contradictions are reported."""

from __future__ import annotations

import pytest
from support import launcher_variables

from dnabert_rm.distributed.launchers import (
    PORTS,
    LauncherError,
    RankInfo,
    first_host,
    how_to_set,
    rank_info,
    tasks_per_node,
)
from dnabert_rm.utils.errors import RANK_VARIABLES, is_first_rank

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "29500",
}
DEEPSPEED = {
    **{name: TORCHRUN[name] for name in TORCHRUN if name != "LOCAL_WORLD_SIZE"},
    "LOCAL_SIZE": "4",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "PMIX_RANK": "5",
}
INTEL_MPI = {
    "PMI_RANK": "5",
    "PMI_SIZE": "8",
    "MPI_LOCALRANKID": "1",
    "MPI_LOCALNRANKS": "4",
}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_ID": "2",
    "SLURM_JOB_ID": "40000",
}
BATCH_SCRIPT = {
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "40000",
    "SLURM_SUBMIT_DIR": "/home/a",
}


def numbers(info: RankInfo) -> tuple[int, int, int, int]:
    return info.rank, info.world_size, info.local_rank, info.local_world_size


@pytest.mark.parametrize("variables", [TORCHRUN, DEEPSPEED, OPEN_MPI, INTEL_MPI, SRUN])
def test_every_launcher_gives_the_same_rank(variables: dict[str, str]) -> None:
    assert numbers(rank_info(variables)) == (5, 8, 1, 4)


def test_without_a_launcher_there_is_a_single_rank() -> None:
    assert numbers(rank_info({})) == (0, 1, 0, 1)
    assert numbers(rank_info({"RANK": "0", "WORLD_SIZE": "1"})) == (0, 1, 0, 1)
    assert numbers(rank_info({"MASTER_ADDR": "a", "MASTER_PORT": "1"})) == (0, 1, 0, 1)


def test_slurms_master_is_the_first_node_of_the_step_with_a_port_of_the_job() -> None:
    info = rank_info(SRUN)
    assert info.master_addr == "gpu07" and info.master_port in PORTS
    assert info == rank_info({**SRUN, "SLURM_JOB_NODELIST": "other1"}), "the step's nodes come before the job's"
    assert rank_info({**SRUN, "SLURM_STEP_ID": "3"}).master_port != info.master_port, "two steps of a job at once"
    given = rank_info({**SRUN, "MASTER_ADDR": "b", "MASTER_PORT": "777"})
    assert (given.master_addr, given.master_port) == ("b", 777)


def test_open_mpi_sets_no_master_unless_it_is_given() -> None:
    assert (rank_info(OPEN_MPI).master_addr, rank_info(OPEN_MPI).master_port) == ("", 0)
    assert rank_info({**OPEN_MPI, "MASTER_ADDR": "b"}).master_addr == "b"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[003-005,9],login1", "gpu003"),
        ("gpu[7,9-11]", "gpu7"),
        ("r[1-2]n[04-16]-ib,x", "r1n04-ib"),
        ("a-b-[1-2]", "a-b-1"),
        ("n[10].cluster", "n10.cluster"),
    ],
)
def test_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_tasks_per_node() -> None:
    assert tasks_per_node("4(x2),3") == [4, 4, 3]
    assert tasks_per_node("1") == [1]
    assert tasks_per_node("four") == []


def test_slurm_nodes_may_have_unequal_numbers_of_tasks() -> None:
    uneven = {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "5,3", "SLURM_PROCID": "5", "SLURM_LOCALID": "0"}
    assert numbers(rank_info(uneven)) == (5, 8, 0, 3)
    assert numbers(rank_info({**uneven, "SLURM_NODEID": "0"})) == (5, 8, 0, 5)


def test_a_step_of_a_job_counts_only_its_tasks() -> None:
    """`srun -n 2` inside a job of 8 tasks."""
    info = rank_info({**SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NUM_NODES": "1"})
    assert numbers(info) == (1, 2, 1, 2)


def test_a_batch_script_is_a_single_rank() -> None:
    assert numbers(rank_info(BATCH_SCRIPT)) == (0, 1, 0, 1)


@pytest.mark.parametrize(
    "outer",
    [
        {**BATCH_SCRIPT},  # `deepspeed` in a batch script
        {**SRUN, "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"},  # `srun deepspeed --no_ssh`
        {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
        OPEN_MPI,  # `mpirun -x RANK …`: the same rank
    ],
)
def test_the_inner_of_two_launchers_counts(outer: dict[str, str]) -> None:
    assert rank_info({**outer, **DEEPSPEED}) == rank_info(DEEPSPEED)


def test_mpirun_in_a_slurm_job_takes_precedence_over_slurm() -> None:
    """mpirun starts one daemon per node through srun, whose SLURM_PROCID the ranks inherit."""
    assert numbers(rank_info({**SRUN, "SLURM_PROCID": "0", "SLURM_NTASKS": "2", **OPEN_MPI})) == (5, 8, 1, 4)


def test_srun_with_pmi2_is_read_as_slurm() -> None:
    assert numbers(rank_info({**SRUN, "PMI_RANK": "5", "PMI_SIZE": "8"})) == (5, 8, 1, 4)


@pytest.mark.parametrize(
    ("variables", "port", "address"),
    [
        (DEEPSPEED, "`deepspeed --master_port 7 launch_scripts/", "`deepspeed --master_addr a launch_scripts/"),
        (
            {**DEEPSPEED, "DNABERT_RM_STOP_FILE": "x"},
            "add --master_port 7 to DEEPSPEED_ARGS",
            "add --master_addr a to DEEPSPEED_ARGS",
        ),
        ({**TORCHRUN, "TORCHELASTIC_RUN_ID": "x"}, "pass --master-port 7 to torchrun", "or --local-addr a if"),
        (TORCHRUN, "set MASTER_PORT=7", "set MASTER_ADDR=a"),
        (OPEN_MPI, "set MASTER_PORT=7", "set MASTER_ADDR=a"),
        (SRUN, "set MASTER_PORT=7", "set MASTER_ADDR=a"),
        ({**SRUN, **DEEPSPEED, "SLURM_NTASKS": "1"}, "`deepspeed --master_port 7 ", "`deepspeed --master_addr a "),
    ],
)
def test_the_address_of_rank_0_is_set_as_its_launcher_reads_it(
    variables: dict[str, str], port: str, address: str
) -> None:
    info = rank_info(variables)
    assert port in how_to_set("MASTER_PORT", "7", info, variables)
    assert address in how_to_set("MASTER_ADDR", "a", info, variables)


MISTAKES = {
    "WORLD_SIZE is not": {"RANK": "0"},
    "RANK is not": {"WORLD_SIZE": "2"},
    "MASTER_ADDR is not": {"RANK": "0", "WORLD_SIZE": "2"},
    "MASTER_PORT is not": {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"},
    "RANK is 'one'": {"RANK": "one", "WORLD_SIZE": "2"},
    "only ranks 0 to 1": {**TORCHRUN, "RANK": "2", "WORLD_SIZE": "2"},
    "LOCAL_RANK is 4": {**TORCHRUN, "LOCAL_RANK": "4"},
    "MASTER_PORT is 70000": {**TORCHRUN, "MASTER_PORT": "70000"},
    "OMPI_COMM_WORLD_SIZE is not": {name: OPEN_MPI[name] for name in OPEN_MPI if not name.endswith("WORLD_SIZE")},
    "SLURM_STEP_NODELIST is not": {name: SRUN[name] for name in SRUN if name != "SLURM_STEP_NODELIST"},
    # `mpirun -n 4 deepspeed --num_gpus 1`: four runs of one rank.
    "contradicts Open MPI's rank 5 of 8": {**OPEN_MPI, "RANK": "0", "WORLD_SIZE": "1"},
    # `mpirun -n 2 deepspeed --num_gpus 4` on one machine: two runs of four ranks.
    "contradicts Open MPI's rank 1 of 2": {
        **OPEN_MPI,
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "1",
        **TORCHRUN,
        "RANK": "0",
    },
    "contradicts Slurm's rank 5 of 8": {**SRUN, **TORCHRUN, "RANK": "4"},
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_contradiction_is_reported(text: str) -> None:
    with pytest.raises(LauncherError, match=text) as caught:
        rank_info(MISTAKES[text])
    assert caught.value.on_one_rank and "\n" not in str(caught.value)


def test_only_rank_0_of_any_launcher_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in launcher_variables():
        monkeypatch.delenv(name, raising=False)
    assert is_first_rank()
    for name in RANK_VARIABLES:
        with monkeypatch.context() as inner:
            inner.setenv(name, "1")
            assert not is_first_rank(), name
            inner.setenv(name, "0")
            assert is_first_rank(), name
