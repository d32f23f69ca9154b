"""Helpers for several test files: small prepared folders, commands, and ranks on this machine."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import multiprocessing
import multiprocessing.process
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import webdataset

from dnabert_rm.data.columns import ContigInfo, ContigTable
from dnabert_rm.data.manifest import Manifest, ShardInfo, SourceInfo, TokenizerInfo, segment_keys, write_manifest
from dnabert_rm.distributed.launchers import free_port
from dnabert_rm.genome import kmer
from dnabert_rm.utils.files import sha256_of_file

ROOT = Path(__file__).resolve().parent.parent


def random_bases(rng: np.random.Generator, length: int) -> str:
    """Return a random sequence of A, C, G, T."""
    return "".join(rng.choice(list("ACGT"), length))


def random_repeats(rng: np.random.Generator, length: int) -> str:
    """Return a random sequence of A, C, G, T with runs in lower case."""
    bases, edges = random_bases(rng, length), np.sort(rng.integers(0, length, 2 * (length // 100)))
    for start, end in edges.reshape(-1, 2).tolist():
        bases = bases[:start] + bases[start:end].lower() + bases[end:]
    return bases


def write_prepared(
    folder: Path,
    shards: Sequence[Sequence[str]],
    *,
    k: int = 6,
    splits: Mapping[int, str] | None = None,
    soft_mask: bool = False,
) -> Manifest:
    """Write a prepared folder without `data_prep`: each sequence is a contig with one segment. Return its manifest.

    With `soft_mask`, the lower-case ranges are recorded.
    """
    folder.mkdir(parents=True)
    keys = segment_keys()
    contigs: list[ContigInfo] = []
    infos: list[ShardInfo] = []
    for number, sequences in enumerate(shards):
        split = (splits or {}).get(number, "train")
        path = folder / f"shard-{number:06d}.tar"
        lengths = []
        with webdataset.TarWriter(str(path), mtime=0, user="root", group="root") as tar:
            for sequence in sequences:
                ids = kmer.encode(sequence, k)
                name = f"contig{len(contigs)}"
                record: dict[str, Any] = {
                    "genome": "g",
                    "contig": [name],
                    "start": [0],
                    "end": [len(sequence)],
                    "split": split,
                    "tokens": [len(ids)],
                }
                if soft_mask:
                    record["soft_masked"] = [[list(match.span()) for match in re.finditer("[a-z]+", sequence)]]
                tar.write({"__key__": next(keys), "ids.npy": ids, "json": record})
                contigs.append(ContigInfo("g", name, len(sequence), len(ids), {}))
                lengths.append(len(ids))
        infos.append(ShardInfo(path.name, split, path.stat().st_size, sha256_of_file(path), np.array(lengths)))
    manifest = Manifest(
        tokenizer=TokenizerInfo("kmer", kmer.vocab_size(k), k),
        sources=[SourceInfo("g", "g.fa", 0, "0" * 64)],
        contigs=ContigTable.from_rows(contigs),
        shards=infos,
        options={"record_soft_mask": True} if soft_mask else {},
    )
    return write_manifest(folder, manifest)


def launcher_variables() -> set[str]:
    """Return the names of environment variables that a launcher may set."""
    names = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    prefixes = ("OMPI_", "PMIX_", "PMI_", "MV2_", "SLURM_", "MPI_LOCAL")
    return names | {name for name in os.environ if name.startswith(prefixes)}


def clean_environment() -> dict[str, str]:
    """Return the environment without a launcher's variables and with one thread per process.

    Python prints the stacks of all threads if a signal such as SIGABRT ends it (`abort_processes`).
    """
    launcher = launcher_variables()
    kept = {name: value for name, value in os.environ.items() if name not in launcher}
    folder = str(Path(sys.executable).parent)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PATH": path}


def abort_processes(processes: Sequence[int]) -> None:
    """End processes and their descendants with SIGABRT, at which Python prints the stacks of all threads.

    They end one after another, because stacks that are printed at the same time would be mixed.
    """
    found: list[psutil.Process] = []
    for number in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [psutil.Process(number), *psutil.Process(number).children(recursive=True)]
    for process in reversed(found):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
            process.send_signal(signal.SIGABRT)
            process.wait(2)
    for process in psutil.wait_procs(found, 10)[1]:
        process.kill()


def run_launcher(command: Sequence[str | Path], timeout: float = 300, **variables: str) -> str:
    """Run a launcher's command and return what it and its ranks printed. Fails with their stacks after `timeout` s."""
    with subprocess.Popen(
        [*map(str, command)],
        cwd=ROOT,
        env={**clean_environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            printed = process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            abort_processes([process.pid])
            raise AssertionError(f"no end after {timeout:g} s:\n{process.communicate()[0]}") from None
    assert process.returncode == 0, printed
    return printed


def run_cli(*words: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a Python module or script of the project, e.g. `run_cli("-m", "data_prep", "inspect", folder)`."""
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def read_metrics(run: Path) -> list[dict]:
    """Read the rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# A fork server imports the slow libraries once, so that each rank starts in a moment instead of ten seconds.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "dnabert_rm.train.trainer",
        "deepspeed.runtime.zero.muon.muon_optimizer",
        "deepspeed.runtime.engine",
        "torch.utils.tensorboard",
        "transformers.models.bert.modeling_bert",
        "transformers.models.modernbert.modeling_modernbert",
    ]
)


def start_ranks(
    num_ranks: int,
    words: Sequence[str | Path],
    log: Path,
    *,
    own_words: Mapping[int, Sequence[str | Path]] | None = None,
    own_variables: Mapping[int, Mapping[str, str]] | None = None,
    **variables: str,
) -> list[multiprocessing.process.BaseProcess]:
    """Start `launch_scripts/pretrain.sh` on gloo ranks of this machine; rank r prints to `log/r.txt`.

    Each rank is a forked process with the libraries imported. `variables` are added to the environment of all ranks.
    For rank r, `own_words[r]` are appended to the words, and `own_variables[r]` override the common variables. A rank
    has one thread unless the words say otherwise: with two, a loss of equal runs once differed by 1e-7 in CI.
    """
    if not any(str(word).startswith("--train.threads_per_rank") for word in words):
        words = ["--train.threads_per_rank", "1", *words]
    shared = {**_rank_variables(num_ranks, free_port()), **variables}
    ranks = []
    for rank in range(num_ranks):
        own = (own_variables or {}).get(rank, {})
        environment = {"RANK": rank, "LOCAL_RANK": rank, **shared, **own}
        ranks.append(start_rank(environment, [*words, *(own_words or {}).get(rank, [])], log / f"{rank}.txt"))
    return ranks


def start_rank(
    environment: Mapping[str, Any], words: Sequence[str | Path], log: Path, node: str = ""
) -> multiprocessing.process.BaseProcess:
    """Start one rank with `environment` added to this process's without a launcher's variables; it prints to `log`.

    `node` is the name of a network namespace to start it in, and also its host name.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = {name: str(value) for name, value in environment.items()}
    process = _FORKS.Process(target=run_rank, args=(variables, [*map(str, words)], str(log), node))
    process.start()
    return process


def run_rank(environment: dict[str, str], words: list[str], log: str, node: str) -> None:
    """Run one rank of a pretraining run; called in a forked process."""
    from dnabert_rm.cli.main import run_one

    if node:
        move_to_node(node)
    # Loader processes start as under a launcher, not from the fork server.
    multiprocessing.set_start_method("fork", force=True)
    _drop_launcher_variables()
    os.environ.update(environment)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep) if "PYTHONPATH" in environment else []
    with open(log, "w", buffering=1) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        faulthandler.enable(stream)
        code = run_one("pretrain", "pretrain.sh", words)
        sys.stderr.flush()
    os._exit(code)  # multiprocessing would wait for processes that the rank left running


def _drop_launcher_variables() -> None:
    """Remove the variables of a launcher that the tests themselves were started by, such as srun."""
    for name in launcher_variables():
        os.environ.pop(name, None)


def move_to_node(name: str) -> None:
    """Move this process into a network namespace that `ip netns add` made, with the same host name."""
    new_net, new_uts = 0x40000000, 0x04000000  # CLONE_NEWNET, CLONE_NEWUTS; os.setns comes with Python 3.12
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{name}") as namespace:
        if libc.setns(namespace.fileno(), new_net) or libc.unshare(new_uts):
            raise OSError(ctypes.get_errno(), f"can't enter {name}")
    socket.sethostname(name)


def wait_for(ranks: Sequence[multiprocessing.process.BaseProcess], timeout: float = 300) -> list[int | None]:
    """Wait for ranks, abort those that exceed `timeout`, and return the exit codes.

    A code is negative if a signal ended the rank, and None if the rank exceeded `timeout`. Such a rank prints its
    stacks.
    """
    deadline = time.monotonic() + timeout
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in ranks]
    abort_processes([process.pid or 0 for process in ranks if process.is_alive()])
    return codes


def _rank_variables(num_ranks: int, port: int) -> dict[str, Any]:
    """Return the variables that all ranks on this machine have in common."""
    return {
        "WORLD_SIZE": num_ranks,
        "LOCAL_WORLD_SIZE": num_ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def on_ranks(num_ranks: int, function: Callable[..., Any], *arguments: Any, timeout: float = 300) -> list[Any]:
    """Return the results of `function(ranks, *arguments)` on each of `num_ranks` gloo ranks."""
    results, port = _FORKS.SimpleQueue(), free_port()
    processes = [
        _FORKS.Process(target=_function_rank, args=(num_ranks, rank, port, results, function, arguments))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    assert wait_for(processes, timeout) == [0] * num_ranks
    found = dict(results.get() for _ in processes)
    return [found[rank] for rank in range(num_ranks)]


def _function_rank(num_ranks: int, rank: int, port: int, results: Any, function: Any, arguments: Any) -> None:
    from dnabert_rm.distributed.process_group import process_group

    variables = {**_rank_variables(num_ranks, port), "RANK": rank, "LOCAL_RANK": rank}
    _drop_launcher_variables()
    os.environ.update({name: str(value) for name, value in variables.items()})
    with process_group(1) as ranks:
        results.put((rank, function(ranks, *arguments)))


def run_ranks(num_ranks: int, *words: str | Path, timeout: float = 300, codes: Sequence[int] | None = None) -> str:
    """Run `launch_scripts/pretrain.sh` on gloo ranks of this machine; return what all of them printed.

    The exit codes must be `codes`, by default all 0.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = wait_for(start_ranks(num_ranks, words, Path(folder)), timeout)
        printed = "\n".join((Path(folder) / f"{rank}.txt").read_text() for rank in range(num_ranks))
    assert found == list(codes or [0] * num_ranks), printed
    return printed


def rewrite_manifest(folder: Path) -> None:
    """Write a checkpoint's manifest again, as an attacker would so that changed files are loaded."""
    from dnabert_rm.checkpoint.checksums import (
        CheckpointManifest,
        hash_own_files,
        read_checkpoint_manifest,
        write_checkpoint_manifest,
    )

    layout = read_checkpoint_manifest(folder).layout
    write_checkpoint_manifest(folder, CheckpointManifest(layout, hash_own_files(folder, 0, 1)))
