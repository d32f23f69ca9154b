"""Inconsistent ranks end together before training, and one of them reports the difference in one line."""

from __future__ import annotations

import shlex
import shutil
import socket
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from support import free_port, random_bases, read_metrics, start_rank, start_ranks, wait_for, write_prepared

from dnabert_rm.config import resolve
from dnabert_rm.genome.kmer import vocab_size
from dnabert_rm.planning.disk_space import checkpoint_bytes

FLAGS = shlex.split(
    "--preset tiny --steps 2 --global-batch 4 --window 66 --log-every 1 --model.num_layers 1 --model.hidden_size 64 "
    "--workers 0"
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number, name in enumerate(("prepared", "other")):
        rng = np.random.default_rng(number)
        write_prepared(folder / name, [[random_bases(rng, 700) for _ in range(4)]], k=4)
    return folder / "prepared"


def run_two(tmp: Path, prepared: Path, *words, own_words=(), own_variables=None, fails: bool = True) -> list[str]:
    """Run 2 ranks, the second with extra words and variables; return the errors and tracebacks that they print."""
    start = time.monotonic()
    ranks = start_ranks(
        2,
        [*FLAGS, "--data", prepared, "--output", tmp / "run", *words],
        tmp / "log",
        own_words={1: own_words},
        own_variables={1: own_variables or {}},
    )
    codes = wait_for(ranks, 100)
    printed = [(tmp / "log" / f"{rank}.txt").read_text() for rank in range(2)]
    assert codes == ([2, 2] if fails else [0, 0]), printed
    assert not fails or time.monotonic() - start < 60
    return [line for text in printed for line in text.splitlines() if "error:" in line or "Traceback" in line]


def test_another_seed_is_reported(tmp_path: Path, prepared: Path) -> None:
    lines = run_two(tmp_path, prepared, own_words=["--seed", "7"])
    host = socket.gethostname()
    assert lines == [
        f"pretrain.sh: error: train.seed differs: 42 on rank 0 ({host}); 7 on rank 1 ({host}); "
        "give all ranks the same flags and files"
    ]
    assert not (tmp_path / "run").exists(), "nothing is left behind"


def test_other_data_are_reported(tmp_path: Path, prepared: Path) -> None:
    (line,) = run_two(tmp_path, prepared, own_words=["--data", prepared.parent / "other"])
    assert "data fingerprint differs" in line and "give all nodes the same prepared folder" in line


def test_data_missing_on_one_node_are_reported(tmp_path: Path, prepared: Path) -> None:
    (line,) = run_two(tmp_path, prepared, own_words=["--data", tmp_path / "nothing"])
    assert "manifest.json: no such file" in line and f"(on rank 1 ({socket.gethostname()}))" in line


def test_a_mistake_of_all_ranks_is_reported_once(tmp_path: Path, prepared: Path) -> None:
    (line,) = run_two(tmp_path, prepared, "--global-batch", "3")
    assert "3 does not divide into 2 ranks" in line.replace("the global batch of ", "") and "(on rank" not in line


def test_a_run_folder_that_is_not_shared_is_reported(tmp_path: Path, prepared: Path) -> None:
    (line,) = run_two(tmp_path, prepared, own_words=["--output", tmp_path / "elsewhere"])
    assert "rank 1" in line and "can't see what rank 0 writes" in line and "train.output" in line


def test_another_version_of_a_library_is_reported(tmp_path: Path, prepared: Path) -> None:
    record = tmp_path / "site" / "transformers-1.2.3.dist-info" / "METADATA"
    record.parent.mkdir(parents=True)
    record.write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 1.2.3\n")
    (line,) = run_two(tmp_path, prepared, own_variables={"PYTHONPATH": str(record.parent.parent)})
    assert "transformers differs" in line and "1.2.3 on rank 1" in line


def test_ranks_train_on_copies_of_the_data_on_local_disks(tmp_path: Path, prepared: Path) -> None:
    shutil.copytree(prepared, tmp_path / "local")
    assert run_two(tmp_path, prepared, own_words=["--data", tmp_path / "local"], fails=False) == []
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [0, 1]
    assert not list((tmp_path / "run").glob(".shared-*"))
    config = resolve(tomllib.loads((tmp_path / "run" / "config.toml").read_text()))
    on_disk = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoints" / "step_00000002").iterdir())
    assert 1 < on_disk / checkpoint_bytes(config, vocab_size(4)) < 1.1


def test_a_rank_that_cannot_exchange_data_ends_all_ranks(tmp_path: Path, prepared: Path) -> None:
    """The other rank ends too, although it waits for this one in torch."""
    (line,) = run_two(tmp_path, prepared, own_variables={"GLOO_SOCKET_IFNAME": "nonesuch"})
    assert "rank 1 on" in line and "can't exchange data" in line and "GLOO_SOCKET_IFNAME" in line


@pytest.mark.parametrize(("rank", "text"), [(0, "only 1 of 2 ranks connected"), (1, "found no rank 0 at 127.0.0.1")])
def test_a_missing_rank_is_reported(tmp_path: Path, prepared: Path, rank: int, text: str) -> None:
    variables = {
        "RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_RANK": 0,
        "LOCAL_WORLD_SIZE": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    words = [*FLAGS, "--data", prepared, "--output", tmp_path / "run", "--train.start_timeout_seconds", "2"]
    assert wait_for([start_rank(variables, words, tmp_path / "log")], 60) == [2]
    printed = (tmp_path / "log").read_text()
    assert text in printed and "Traceback" not in printed


def test_a_port_in_use_is_reported(tmp_path: Path, prepared: Path) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        variables = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        words = [*FLAGS, "--data", prepared, "--output", tmp_path / "run"]
        assert wait_for([start_rank(variables, words, tmp_path / "log")], 60) == [2]
    assert f"port {port} is in use" in (tmp_path / "log").read_text()
