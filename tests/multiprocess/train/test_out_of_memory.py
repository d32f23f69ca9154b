"""Out-of-memory errors become one line that names what to reduce."""

from __future__ import annotations

import multiprocessing
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from support import random_bases, run_rank, write_prepared

from dnabert_rm.utils.out_of_memory import NotEnoughMemoryError, explain_out_of_memory

GIB = 2**30


def run_with_memory_limit(words: list[str], log: str, extra_bytes: int) -> None:
    """Run one rank, in a forked process that may allocate `extra_bytes` more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    run_rank({}, words, log, "")


def test_a_rank_without_memory_names_what_to_reduce(tmp_path: Path) -> None:
    """512 windows of 64 tokens, 16,384 units per layer: a call of the first layer needs 2 GiB, and 1.5 GiB are left."""
    write_prepared(tmp_path / "prepared", [[random_bases(np.random.default_rng(0), 33_000)]], k=3)
    words = ["--preset", "tiny", "--data", tmp_path / "prepared", "--output", tmp_path / "run", "--window", "64",
             "--steps", "2", "--global-batch", "512", "--model.intermediate_size", "16384", "--model.num_layers", "2",
             "--model.hidden_size", "32", "--ds-config", "zero0", "--workers", "0"]  # fmt: skip
    log = tmp_path / "log.txt"
    forks = multiprocessing.get_context("forkserver")
    process = forks.Process(target=run_with_memory_limit, args=([str(word) for word in words], str(log), 3 * GIB // 2))
    process.start()
    process.join(120)
    assert process.exitcode == 2, log.read_text()
    last = log.read_text().splitlines()[-1]
    assert "rank 0: out of memory (2 GiB requested)" in last
    assert "--micro-batch" in last and "activation_checkpointing" in last and "--ds-config" in last
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.25 GiB. GPU 0 …"), "(20.25 GiB requested)"),
        (MemoryError("Unable to allocate 3 GiB for an array"), "out of memory;"),
    ],
)
def test_other_out_of_memory_errors_are_recognized(error: Exception, shown: str) -> None:
    with (
        pytest.raises(NotEnoughMemoryError, match="rank 3: out of memory") as found,
        explain_out_of_memory("take less", 3),
    ):
        raise error
    assert shown in str(found.value)


def test_other_errors_are_unchanged() -> None:
    with pytest.raises(RuntimeError, match="a shape"), explain_out_of_memory("take less", 0):
        raise RuntimeError("a shape that does not fit")
